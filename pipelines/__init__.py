"""Six NLP tasks on ONNX Runtime: `load` a model artifact, call it as one calls `transformers.pipeline`.

    >>> classify = load("models/text-classification")
    >>> classify("정말 재미있는 영화였어요")
    [{'label': 'positive', 'score': 0.98}]

Needs numpy, tokenizers, onnxruntime and msgspec; never torch, transformers or ray.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact

if TYPE_CHECKING:
    from pipelines.generation.slots.config import SlotsConfig
    from pipelines.runtime.providers import Device
    from pipelines.tasks.generator import CompilerOf


def load(
    path: str | Path,
    *,
    task: str | None = None,
    device: "Device" = "cpu",
    threads: int | None = None,
    concurrency: int = 1,
    gpu_mem_limit_bytes: int | None = None,
    cuda_graphs: bool = True,
    max_batch_size: int | None = None,
    allow_unverified: bool = False,
    slots: "SlotsConfig | None" = None,
    compiler: "CompilerOf | None" = None,
    adapters: Mapping[str, Path] | None = None,
) -> Any:
    """The pipeline of an artifact: a `pipelines.tasks.pipeline.Pipeline` for the task it was exported for.

    `threads` are intra-op threads of each session, by default one for each core that the process may use; up to
    `concurrency` forwards of an encoder share them when they run at once. `slots` is for models that write text. On a
    GPU `gpu_mem_limit_bytes` bounds the memory of all sessions together, `cuda_graphs` lets them replay captured runs,
    and `max_batch_size` is the most rows that an encoder's TensorRT engine is built for. `compiler` makes the grammar
    compiler of a task that is guided. `adapters` are folders of LoRA adapters by name, beside a decoder-only model with
    KV cache slots: `adapted()` of the pipeline has one for each. `task` refuses an artifact of another task. Raises
    ArtifactError for a folder that must not be served, ConfigurationError for a device that this machine does not have.
    """
    from pipelines.runtime.session_config import SessionConfig, usable_cores
    from pipelines.tasks import TASKS

    artifact = ModelArtifact.open(path, task=task, allow_unverified=allow_unverified)
    artifact.check_device(device)
    threads = usable_cores() if threads is None else threads
    config = SessionConfig(device, threads, concurrency, gpu_mem_limit_bytes, cuda_graphs=cuda_graphs)
    if max_batch_size is not None:
        config = replace(config, max_rows=max_batch_size)
    found = TASKS[artifact.manifest.task]
    more: dict[str, Any] = {"compiler": compiler} if found.guided else {}
    if adapters:
        if not found.generates:
            raise ConfigurationError(f"adapters is set for {found.name}; allowed for: {_generating(TASKS)}")
        more["adapters"] = adapters
    if slots is None:
        return found.pipeline(artifact, config, **more)
    if not found.generates:
        raise ConfigurationError(f"slots is set for {found.name}; allowed for: {_generating(TASKS)}")
    return found.pipeline(artifact, config, slots, **more)


def _generating(tasks: Mapping[str, Any]) -> str:
    return ", ".join(name for name, task in tasks.items() if task.generates)
