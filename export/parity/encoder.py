"""ExportedEncoder: the outputs of an exported encoder beside those of the PyTorch model that it was made from."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from export.graphs.encoders.packed import OPERATOR
from export.graphs.encoders.stand_in import write_stand_in
from export.parity.activations import Activations
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import PaddedRows, layout_of
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig


class ExportedEncoder:
    """An artifact's graph, on CUDA where it is made for that and this machine has it, else on the CPU.

    A CPU has no kernel for packed attention: there operators that it has stand for this one. It computes parts of an
    fp16 graph in fp32. `compared_on` says which it was. `activations` are those of PyTorch.
    """

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        self._settings = artifact.manifest.tokenizer
        self._session, self.compared_on = _session(artifact, config)
        self.output_names = self._session.output_names
        self.activations = Activations()

    def compare(
        self, encodings: Sequence[Any], model: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        """Outputs of `model` and of the graph, by name, and the mask (rows, tokens) of what is not padding.

        Outputs are (rows, labels) or (rows, tokens, ...).
        """
        import torch

        typed = self._settings.token_type_ids
        rows = [
            EncoderRow.of(one, np.asarray(one.ids, np.int64), np.asarray(one.type_ids, np.int64) if typed else None)
            for one in encodings
        ]
        pad_token_id, session = self._settings.pad_token_id, self._session
        feeds = PaddedRows(PaddedRows.inputs, pad_token_id).feeds(rows)
        mask = feeds["attention_mask"].astype(bool)
        known = set(inspect.signature(model.forward).parameters)
        if not typed:  # GPT-2 adds an embedding for types, of which its tokenizer makes none
            known.discard("token_type_ids")
        given = {name: torch.from_numpy(array) for name, array in feeds.items() if name in known}
        with torch.no_grad(), self.activations.observed(model):
            outputs = _by_row(model, given) if _reads_rows_alone(model) else model(**given)
        exported = session.run(layout_of(session.input_names, pad_token_id).feeds(rows))
        for name, output in exported.items():
            if session.output_shapes[name][0] == "tokens":
                exported[name] = np.zeros((*mask.shape, *output.shape[1:]), output.dtype)
                exported[name][mask] = output
        return {name: outputs[name].numpy() for name in exported}, exported, mask


def _reads_rows_alone(model: Any) -> bool:
    """Whether the head of a sequence cannot take any batch: it counts on as many ends in every row (BART), or has no
    padding to tell the last token by (GPT-2).
    """
    return type(model).__name__.endswith("ForSequenceClassification") and (
        model.config.is_encoder_decoder or model.config.pad_token_id is None
    )


def _by_row(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The logits of each row alone, without its padding."""
    import torch

    lengths = given["attention_mask"].sum(1).tolist()
    rows = [
        model(**{name: one[row : row + 1, :length] for name, one in given.items()}).logits
        for row, length in enumerate(lengths)
    ]
    return {"logits": torch.cat(rows)}


def _session(artifact: ModelArtifact, config: SessionConfig) -> tuple[InferenceSession, str]:
    import onnxruntime

    graph, manifest = artifact.graph("model"), artifact.manifest
    if manifest.device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        try:
            return InferenceSession(graph, replace(config, device="cuda")), "CUDA"
        except ConfigurationError:  # built for CUDA, on a machine without a GPU
            pass
    if manifest.rows == "padded":
        return InferenceSession(graph, config), "CPU"
    with TemporaryDirectory() as folder:
        stand_in = Path(folder, graph.name)
        write_stand_in(graph, stand_in)
        return InferenceSession(stand_in, config), f"CPU, with a stand-in for {OPERATOR}"
