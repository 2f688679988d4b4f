"""Where KV cache slots lie: in CPU memory, which numpy copies, or on a device, where ONNX Runtime does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

from pipelines.generation.slots.device.cache import DeviceCache
from pipelines.generation.slots.host_cache import HostCache
from pipelines.runtime.session_config import SessionConfig

SlotCache = HostCache | DeviceCache
RUN_TOKENS = {"cpu": 16, "cuda": 1024}
"""SlotModel.run_tokens, by the memory of the session."""


def open_cache(
    dtypes: "Mapping[str, np.dtype[Any]]", shapes: Mapping[str, Sequence[int]], config: SessionConfig, *, device: bool
) -> SlotCache:
    """A buffer (slots, heads, max_tokens, head_dim) for each of `dtypes`, by name; `device`: on that of `config`."""
    return DeviceCache(dtypes, shapes, config) if device else HostCache(dtypes, shapes)
