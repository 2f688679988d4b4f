"""Lora: the weights of a LoRA adapter, from the folder that PEFT writes. Serving has neither peft nor safetensors.

    adapter_config.json            rank, scale and kind
    adapter_model.safetensors      base_model.model.LAYER.lora_A.weight (rank, in), .lora_B.weight (out, rank)

An adapter adds `lora_B(lora_A(x)) * scale` to what a linear layer makes of x. Kinds that do more are refused: merged
into their base at export they are served as models of their own.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigurationError, InvalidInputError
from pipelines.misfit import shown
from pipelines.runtime.artifact import FileDigest
from pipelines.schema import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 256
MAX_BYTES = 2**30
_MAX_JSON = 16 * 2**20  # bytes of adapter_config.json, and of the header of the weights
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the base
}
_WITHOUT_EFFECT = (
    "peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode",
    "r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "qalora_group_size", "megatron_config", "megatron_core", "ensure_weight_tying",
)  # fmt: skip
"""Settings of PEFT that say nothing, or what the weights or `Lora` say. With others set, an adapter does more."""
_MERGED = "export it merged into its base: sextet export ADAPTER"


@dataclass(frozen=True, eq=False)
class Lora:
    """`layers` has, by the name of a layer in transformers, float32 (rank, in) and (out, rank); the second is scaled.

    `base` is what its config calls its base. `digest` is the sha256 of the weights.
    """

    name: str
    base: str
    digest: str
    layers: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def read(cls, name: str, folder: Path) -> "Lora":
        """Raises ConfigurationError, one line that names the adapter and what is wrong with it."""
        what = f"the adapter {name} ({folder})"
        config, file = _config(what, folder / CONFIG), folder / WEIGHTS
        _check_kind(what, config)
        layers: dict[str, dict[str, np.ndarray]] = {}
        try:
            size = file.stat().st_size
            if size > MAX_BYTES:
                raise ConfigurationError(f"{what} has {size} bytes of weights; allowed: at most {MAX_BYTES}")
            for key, values in _tensors(file):
                found = _TENSOR.fullmatch(key)
                if found is None or values.ndim != 2:
                    raise ConfigurationError(f"{what} has the tensor {key}, which is not LoRA's; {_MERGED}")
                layers.setdefault(found["layer"], {})[found["side"]] = values
            digest = FileDigest.of(file).sha256
        except OSError as error:
            raise ConfigurationError(f"{what} cannot be read: {WEIGHTS}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigurationError(f"{what} cannot be read: {WEIGHTS} is no safetensors file ({error})") from None
        if not layers:
            raise ConfigurationError(f"{what} has no weights")
        scaled = {layer: _scaled(what, layer, sides, config) for layer, sides in layers.items()}
        return cls(name, str(config.get("base_model_name_or_path")), digest, scaled)

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(len(first) for first, _ in self.layers.values())


def _config(what: str, file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_JSON:
            raise ConfigurationError(f"{what}: {CONFIG} has more than {_MAX_JSON} bytes")
        config = read_json(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be read: {CONFIG}: {error.strerror}") from None
    except InvalidInputError as error:
        raise ConfigurationError(f"{what} cannot be read: {CONFIG} {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{what} cannot be read: {CONFIG} is no JSON object")
    return config


def _check_kind(what: str, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ConfigurationError(f"{what} is of the kind {shown(config.get('peft_type'))}; allowed: LORA; {_MERGED}")
    for key, value in config.items():
        if value and key not in _WITHOUT_EFFECT and key not in _NEUTRAL:
            raise ConfigurationError(f"{what} has {key}: it does more than LoRA beside its base; {_MERGED}")
    for key, allowed in _NEUTRAL.items():
        if (value := config.get(key)) is not None and value not in allowed:
            raise ConfigurationError(
                f"{what} has {key} {shown(value)}; allowed: {', '.join(map(str, allowed))}; {_MERGED}"
            )


def _scaled(
    what: str, layer: str, sides: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    if len(sides) != 2:
        raise ConfigurationError(f"{what} has only one of lora_A and lora_B of {layer}")
    first, second = sides["A"], sides["B"]
    rank = len(first)
    if not 1 <= rank <= MAX_RANK or second.shape[1] != rank:
        shapes = f"{first.shape} and {second.shape}"
        raise ConfigurationError(f"{what}: {layer} has {shapes}; allowed: one rank of 1 to {MAX_RANK}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ConfigurationError(f"{what}: {layer} has weights that are no numbers")
    alpha = _of_layer(config.get("alpha_pattern") or {}, layer, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConfigurationError(f"{what}: {layer} has lora_alpha {shown(alpha)}; allowed: a number")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return first, second * np.float32(scale)


def _of_layer(pattern: Any, layer: str, default: Any) -> Any:
    """The value of the first key of a pattern that names the layer or is the end of its name, as PEFT matches."""
    for key, value in pattern.items() if isinstance(pattern, Mapping) else ():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", layer):
                return value
        except re.error:
            continue
    return default


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a safetensors file as float32, by name; raises ValueError for what is no such file."""
    content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
    length = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 or length > min(_MAX_JSON, len(content) - 8):
        raise ValueError("its header is cut")
    try:
        header = read_json(content[8 : 8 + length].tobytes())
    except InvalidInputError as error:
        raise ValueError(str(error)) from None
    data = content[8 + length :]
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name != "__metadata__":
            yield name, _tensor(name, entry, data)


def _tensor(name: str, entry: Any, data: np.ndarray) -> np.ndarray:
    try:
        dtype, shape, (start, end) = (
            _DTYPES[entry["dtype"]],
            [int(one) for one in entry["shape"]],
            entry["data_offsets"],
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} is none of {', '.join(_DTYPES)}") from None
    if (
        not 0 <= start <= end <= len(data)
        or min(shape, default=0) < 0
        or math.prod(shape) * dtype.itemsize != end - start
    ):
        raise ValueError(f"{name} lies outside of it")
    values: np.ndarray = np.frombuffer(data[start:end].tobytes(), dtype).reshape(shape)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float32)
