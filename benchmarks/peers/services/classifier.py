"""Classifiers for the services that load a Python class: the Rust tokenizers around one forward."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

CORES = 2
THREADS = CORES // int(os.environ["PEER_WORKERS"])
MAX_TOKENS = 512


class Classifier:
    """Called with a list of texts, pads them to the longest and answers a label and a score for each."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._labels = config.get("id2label", {})  # left out where the labels have transformers' default names

    def logits(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """(batch, labels) of `input_ids`, `attention_mask` and `token_type_ids`, each (batch, tokens) int64."""
        raise NotImplementedError

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        encodings = self._tokenizer.encode_batch(texts)
        arrays = {
            "input_ids": np.array([encoding.ids for encoding in encodings]),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
        }
        logits = self.logits(arrays)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        return [
            {"label": self._labels.get(str(index), f"LABEL_{index}"), "score": float(row[index])}
            for index, row in zip(best, scores, strict=True)
        ]


class OnnxClassifier(Classifier):
    """model.onnx on ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = self._session.run(None, arrays)[0]
        return logits


class OpenVinoClassifier(Classifier):
    """model.xml on OpenVINO, which takes bf16 for what is not int8 where the processor has it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import openvino

        options = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        options |= {"ENABLE_CPU_PINNING": False}  # two workers must not pin their threads to the same core
        self._compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
        self._request = self._compiled.create_infer_request()

    def logits(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = self._request.infer(arrays, share_inputs=True)[0]
        return logits
