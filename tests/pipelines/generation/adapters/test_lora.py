"""What is no adapter for a base is refused in one line that says what differs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ArtifactError, ConfigurationError
from pipelines.generation.adapters.lora import CONFIG, WEIGHTS, Lora
from pipelines.generation.adapters.stack import MAX_ADAPTERS, AdapterStack
from pipelines.generation.open import open_stack
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import SessionConfig

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """An adapter as PEFT saves one."""
    from safetensors.numpy import save_file

    if tensors is None:
        tensors = of_layer(LAYER, 32, 32, 2)
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "b"} | config
    (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS)
    return folder


def of_layer(layer: str, reads: int, makes: int, rank: int) -> dict[str, np.ndarray]:
    first, second = np.ones((rank, reads), np.float32), np.ones((makes, rank), np.float32)
    return {f"{layer}.lora_A.weight": first, f"{layer}.lora_B.weight": second}


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Lora.read("pirate", folder)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"the adapter pirate ({folder})")
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_are_read_and_scaled(tmp_path: Path, dtype: Any) -> None:
    tensors = {name: one.astype(dtype) for name, one in of_layer(LAYER, 32, 32, 2).items()}
    read = Lora.read("pirate", write(tmp_path / "a", tensors, lora_alpha=6))
    first, second = read.layers["model.layers.0.self_attn.q_proj"]
    assert first.dtype == second.dtype == np.float32
    assert (first.shape, second.shape, read.rank) == ((2, 32), (32, 2), 2)
    assert (first == 1).all()
    assert (second == 3).all()


def test_bfloat16_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = write(tmp_path / "a")
    tensors = {
        name: torch.full(one.shape, 1.5, dtype=torch.bfloat16) for name, one in of_layer(LAYER, 32, 32, 2).items()
    }
    save_file(tensors, folder / WEIGHTS)
    assert (Lora.read("pirate", folder).layers["model.layers.0.self_attn.q_proj"][0] == 1.5).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "is of the kind 'IA3'; allowed: LORA; export it merged into its base"),
        ({"use_dora": True}, "has use_dora: it does more than LoRA beside its base"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save: it does more"),
        ({"from_a_later_release": {"x": 1}}, "has from_a_later_release: it does more"),
        ({"bias": "all"}, "has bias 'all'; allowed: none"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa'; allowed: True, False, gaussian"),
        ({"lora_alpha": "x"}, "model.layers.0.self_attn.q_proj has lora_alpha 'x'; allowed: a number"),
    ],
)
def test_a_kind_that_is_not_served_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert message in refusal(write(tmp_path / "a", **config))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has no weights"),
        ({"x.weight": np.ones((2, 2), np.float32)}, "has the tensor x.weight, which is not LoRA's"),
        (of_layer(LAYER, 8, 8, 300), "q_proj has (300, 8) and (8, 300); allowed: one rank of 1 to 256"),
        (
            {f"{LAYER}.lora_A.weight": np.ones((2, 2), np.float32)},
            "has only one of lora_A and lora_B of model.layers.0",
        ),
        (
            {name: one * np.float32(np.nan) for name, one in of_layer(LAYER, 8, 8, 2).items()},
            "has weights that are no numbers",
        ),
        ({name: one.astype(np.int8) for name, one in of_layer(LAYER, 8, 8, 2).items()}, "is none of F32, F16, BF16"),
    ],
)
def test_weights_that_are_not_loras_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    assert message in refusal(write(tmp_path / "a", tensors))


def test_files_that_are_missing_cut_or_no_adapters_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: adapter_config.json: No such file" in refusal(tmp_path / "nowhere")
    folder = write(tmp_path / "a")
    whole = (folder / WEIGHTS).read_bytes()
    for content in (b"", whole[:4], whole[:20], whole[:-8], b"\xff" * 200, (2).to_bytes(8, "little") + b"[]"):
        (folder / WEIGHTS).write_bytes(content)
        assert WEIGHTS in refusal(folder) or "has no weights" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert "adapter_model.safetensors: No such file" in refusal(folder)
    (folder / CONFIG).write_text("{")
    assert "adapter_config.json" in refusal(folder)


def test_an_adapter_of_another_base_is_refused_by_what_differs(exported: Callable[..., Path], tmp_path: Path) -> None:
    artifact = ModelArtifact.open(exported("llama", "text-generation"))

    def opened(folder: Path) -> AdapterStack:
        return open_stack(artifact, SessionConfig(), {"pirate": folder})

    assert opened(write(tmp_path / "fits", of_layer(LAYER, 32, 64, 2))).adapters[0].rank == 2
    wide = write(tmp_path / "wide", of_layer(LAYER, 64, 32, 2))
    with pytest.raises(
        ConfigurationError,
        match=r"pirate does not fit .*q_proj is of 64 channels to 32, the base's of 32 ",
    ):
        opened(wide)
    deep = write(tmp_path / "deep", of_layer(LAYER.replace("layers.0", "layers.7"), 32, 32, 2))
    with pytest.raises(ConfigurationError, match=r"has no layer model.layers.7.self_attn.q_proj .*did you mean"):
        opened(deep)
    head = write(tmp_path / "head", of_layer("base_model.model.lm_head", 32, 32, 2))
    with pytest.raises(ConfigurationError, match="has no layer lm_head which takes adapters"):
        opened(head)


def test_where_no_adapter_can_be_served_that_is_said(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    artifact = ModelArtifact.open(exported("llama", "text-generation"))
    with pytest.raises(ConfigurationError, match="adapters is set with device 'cuda'; allowed: cpu"):
        open_stack(artifact, SessionConfig("cuda"), {"a": folder})
    many = {f"a{n}": folder for n in range(MAX_ADAPTERS + 1)}
    with pytest.raises(ConfigurationError, match="adapters has 17 elements; allowed: at most 16"):
        open_stack(artifact, SessionConfig(), many)
    translator = ModelArtifact.open(exported("marian", "translation"))
    with pytest.raises(ConfigurationError, match="is no decoder-only model with KV cache slots"):
        open_stack(translator, SessionConfig(), {"a": folder})


def test_a_graph_of_an_earlier_release_is_to_be_exported_again(exported: Callable[..., Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(exported("llama", "text-generation") / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="does not say where adapters go: .*; export it again"):
        AdapterStack.open(tmp_path / "model.onnx", {"a": write(tmp_path / "a")})
