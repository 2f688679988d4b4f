"""Catalog: the peers, each on two cores.

A batch by count, padded to its longest text, helps where all texts have one length and hurts where lengths differ.
Peers that batch by count are therefore measured with batches of 1, too. Mosec has processes as workers: one on both
cores, or one on each.
"""

import json
from dataclasses import replace
from typing import Any

from benchmarks.peers.peer import OTHER_QUANTIZATION, SAME_GRAPH, SAME_WEIGHTS, SERVICES, Peer, Top, Way

RAY_SERVE_TRANSFORMERS = "ray-serve-transformers"  # the peer that has a figure of its own
ALONE_OR_BATCHED = (Way(1), Way(8))
WITH_WORKERS = (Way(1, workers=2), Way(8, workers=2), Way(8))
OPENVINO = "openvino"  # the peer that has a figure of its own, too
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
    script=SERVICES / "mosec_classifier.py",
    path="/inference",
    body=_inputs,
    top=_label_and_score,
    ways=WITH_WORKERS,
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
        ways=ALONE_OR_BATCHED,
        needs=("ray", "transformers", "torch"),
    ),
    Peer(
        name="litserve",
        serves="the same ONNX file, ONNX Runtime, dynamic batches",
        script=SERVICES / "litserve_onnx.py",
        path="/predict",
        body=_inputs,
        top=_label_and_score,
        ways=ALONE_OR_BATCHED,
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
    replace(
        MOSEC,
        name=OPENVINO,
        serves="OpenVINO's own int8 model (NNCF, calibrated on the load), OpenVINO behind Mosec, dynamic batches",
        model="openvino",
        log_odds_tolerance=OTHER_QUANTIZATION,
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
        ways=(Way(32),),  # its default: it sorts by length
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
    ways=(Way(512),),
    needs=("aiohttp", "uvloop", "transformers", "torch"),
)
PYTORCH_COMPILED = replace(PYTORCH, name="transformers, compiled", settings={"PEER_COMPILE": "1"})
