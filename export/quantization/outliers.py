"""Outliers: the weight matrices that must not be quantized dynamically, because of their inputs.

The activations of a batch share one scale. A token whose peak is far above all others leaves these a few of 256 steps.
Language models have such tokens at a few layers (Sun et al. 2024, "Massive Activations in Large Language Models"):
mostly the first token, mostly at the output projection of the feed-forward network.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

PEAK = 8.0
_NEW_TOKENS = 8


def outlier_matrices(model: Any, inputs: Sequence[Sequence[int]]) -> frozenset[str]:
    """The `digest` of each weight with an input token whose peak is more than `PEAK` times the median.

    `inputs` are token ids; an encoder-decoder generates a few tokens for each.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    peaks: dict[Any, list[Any]] = {}

    def watch(module: Any, given: tuple[Any, ...], _output: Any) -> None:
        peaks.setdefault(module, []).append(given[0].detach().abs().amax(-1).flatten())

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        with torch.no_grad():
            for ids in inputs:
                _run(model, torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    found = set()
    for layer, seen in peaks.items():
        tokens = torch.cat(seen)
        if tokens.max() > PEAK * tokens.median():
            weight = layer.weight.detach().numpy()
            found.add(digest(weight.T if isinstance(layer, Conv1D) else weight))
    return frozenset(found)


def digest(matrix: np.ndarray) -> str:
    """Identifies a float32 matrix (out, in) by its first channel.

    The whole would not do: export.graphs.slot_fusions may have joined it with others of the same input.
    """
    return hashlib.sha256(np.ascontiguousarray(matrix[0]).data).hexdigest()


def _run(model: Any, input_ids: Any) -> None:
    if model.config.is_encoder_decoder and model.can_generate():
        model.generate(input_ids, max_new_tokens=_NEW_TOKENS, do_sample=False, num_beams=1)
    else:
        model(input_ids)
