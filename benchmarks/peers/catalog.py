"""Catalog: the peers, each on two cores.

A batch by count, padded to its longest text, helps where all texts have one length and hurts where lengths differ.
Peers that batch by count are therefore measured with batches of 1, too.
"""

import json
from dataclasses import replace
from typing import Any

from benchmarks.peers.peer import SAME_GRAPH, SAME_WEIGHTS, SERVICES, Peer, Top

RAY_SERVE_TRANSFORMERS = "ray-serve-transformers"  # the peer that has a figure of its own
ALONE_OR_BATCHED = (1, 8)
SERVED_NAME = "classifier"  # where a server asks for the model by name; its service says the same


def _inputs(text: str) -> Any:
    return {"inputs": text}


def _open_inference(text: str) -> Any:
    # Its adaptive batching joins what several requests call `args` into one call that the runtime then refuses.
    return {"inputs": [{"name": "array_inputs", "shape": [1], "datatype": "BYTES", "data": [text]}]}


def _infinity(text: str) -> Any:
    return {"model": SERVED_NAME, "input": [text]}


def _label_and_score(answer: Any) -> Top:
    return answer["label"], answer["score"]


MOSEC = Peer(
    name="mosec",
    serves="the same ONNX file, ONNX Runtime, dynamic batches",
    script=SERVICES / "mosec_onnx.py",
    path="/inference",
    body=_inputs,
    top=_label_and_score,
    batch_sizes=ALONE_OR_BATCHED,
)
PEERS = (
    Peer(
        name=RAY_SERVE_TRANSFORMERS,
        serves="transformers pipeline, PyTorch fp32, @serve.batch",
        script=SERVICES / "ray_serve_transformers.py",
        path="/",
        body=_inputs,
        top=_label_and_score,
        model="checkpoint",
        log_odds_tolerance=SAME_WEIGHTS,
        batch_sizes=ALONE_OR_BATCHED,
        needs=("ray", "transformers", "torch"),
    ),
    Peer(
        name="litserve",
        serves="the same ONNX file, ONNX Runtime, dynamic batches",
        script=SERVICES / "litserve_onnx.py",
        path="/predict",
        body=_inputs,
        top=_label_and_score,
        batch_sizes=ALONE_OR_BATCHED,
    ),
    MOSEC,
    replace(
        MOSEC,
        name="mosec-optimum",
        serves="Optimum's own int8 export of the checkpoint, ONNX Runtime, dynamic batches",
        model="optimum",
        log_odds_tolerance=SAME_WEIGHTS,
        installed_as="mosec",
    ),
    Peer(
        name="mlserver",
        serves="the same ONNX file, Hugging Face runtime with Optimum, requests joined by 8",
        script=SERVICES / "mlserver_optimum.py",
        path=f"/v2/models/{SERVED_NAME}/infer",
        body=_open_inference,
        top=lambda answer: _label_and_score(json.loads(answer["outputs"][0]["data"][0])),
    ),
    Peer(
        name="infinity",
        serves="the same ONNX file, infinity-emb with Optimum, its own batches",
        script=SERVICES / "infinity_optimum.py",
        path="/classify",
        body=_infinity,
        top=lambda answer: _label_and_score(answer["data"][0][0]),
        batch_sizes=(32,),  # its default: it sorts by length
    ),
)
PYTORCH = Peer(  # of the measurements on a GPU
    name="transformers",
    serves="PyTorch, fp16 with SDPA on CUDA, aiohttp on uvloop, dynamic batches",
    script=SERVICES / "aiohttp_transformers.py",
    path="/",
    body=_inputs,
    top=lambda answer: _label_and_score(answer[0]),
    model="checkpoint",
    log_odds_tolerance=SAME_GRAPH,  # fp16 against fp16 of the same weights
    batch_sizes=(512,),
    needs=("aiohttp", "uvloop", "transformers", "torch"),
)
PYTORCH_COMPILED = replace(PYTORCH, name="transformers, compiled", settings={"PEER_COMPILE": "1"})
