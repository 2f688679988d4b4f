"""Six NLP tasks on ONNX Runtime: `load` a model artifact, call it as one calls `transformers.pipeline`.

    >>> classify = load("models/text-classification")
    >>> classify("정말 재미있는 영화였어요")
    [{'label': 'positive', 'score': 0.98}]

Needs numpy, tokenizers, onnxruntime and msgspec; never torch, transformers or ray.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact

if TYPE_CHECKING:
    from pipelines.generation.slots.config import SlotsConfig
    from pipelines.runtime.providers import Device


def load(
    path: str | Path,
    *,
    task: str | None = None,
    device: "Device" = "cpu",
    threads: int = 1,
    concurrency: int = 1,
    gpu_mem_limit_bytes: int | None = None,
    allow_unverified: bool = False,
    slots: "SlotsConfig | None" = None,
) -> Any:
    """The pipeline of an artifact: a `pipelines.tasks.pipeline.Pipeline` for the task it was exported for.

    `threads` are intra-op threads of each session, which up to `concurrency` forwards of an encoder share when they
    run at once; `slots` is for models that write text. `task` refuses an artifact of another task. Raises ArtifactError
    for a folder that must not be served, ConfigurationError for a device that this machine does not have.
    """
    from pipelines.runtime.session import SessionConfig
    from pipelines.tasks import TASKS

    artifact = ModelArtifact.open(path, task=task, allow_unverified=allow_unverified)
    if device != "cpu" and artifact.manifest.precision == "int8":
        raise ConfigurationError(
            f"device is {device!r}, but {artifact.path} has the precision int8, which is for the CPU; "
            "export it with --precision fp16 --device cuda"
        )
    config = SessionConfig(device, threads, concurrency, gpu_mem_limit_bytes)
    found = TASKS[artifact.manifest.task]
    if slots is None:
        return found.pipeline(artifact, config)
    if not found.generates:
        generating = ", ".join(name for name, other in TASKS.items() if other.generates)
        raise ConfigurationError(f"slots is set for {found.name}; allowed for: {generating}")
    return found.pipeline(artifact, config, slots)
