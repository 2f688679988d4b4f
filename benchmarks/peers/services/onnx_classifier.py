"""The artifact's model.onnx on ONNX Runtime with the Rust tokenizers, for the services that load a Python class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

THREADS = 2
MAX_TOKENS = 512


class OnnxClassifier:
    """Called with a list of texts, pads them to the longest and answers a label and a score for each."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self._labels = config.get("id2label", {})  # left out where the labels have transformers' default names
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        encodings = self._tokenizer.encode_batch(texts)
        arrays = {
            "input_ids": np.array([encoding.ids for encoding in encodings]),  # (batch, tokens) int64
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
        }
        (logits,) = self._session.run(None, arrays)  # (batch, labels)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        return [
            {"label": self._labels.get(str(index), f"LABEL_{index}"), "score": float(row[index])}
            for index, row in zip(best, scores, strict=True)
        ]
