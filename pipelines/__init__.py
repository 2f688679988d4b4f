"""Six NLP tasks on ONNX Runtime: `load` a model artifact, call it as one calls `transformers.pipeline`.

    >>> classify = load("models/text-classification")
    >>> classify("정말 재미있는 영화였어요")
    [{'label': 'positive', 'score': 0.98}]

Needs numpy, tokenizers and onnxruntime; never torch, transformers or ray.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifact import GENERATING, ModelArtifact
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from pipelines.generation.slots import SlotsConfig
    from pipelines.session import Device

_CLASSES = {
    "text-classification": ("pipelines.text_classification", "TextClassificationPipeline"),
    "question-answering": ("pipelines.question_answering", "QuestionAnsweringPipeline"),
    "token-classification": ("pipelines.token_classification", "TokenClassificationPipeline"),
    "translation": ("pipelines.text2text", "TranslationPipeline"),
    "summarization": ("pipelines.text2text", "SummarizationPipeline"),
    "text-generation": ("pipelines.text_generation", "TextGenerationPipeline"),
}


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
    """The pipeline of an artifact: a `pipelines.base.Pipeline` for the task it was exported for.

    `threads` are intra-op threads of each session, which up to `concurrency` forwards of an encoder share when they
    run at once; `slots` is for models that write text. `task` refuses an artifact of another task. Raises ArtifactError
    for a folder that must not be served, ConfigurationError for a device that this machine does not have.
    """
    from pipelines.session import SessionConfig

    artifact = ModelArtifact.open(path, task=task, allow_unverified=allow_unverified)
    config = SessionConfig(device, threads, concurrency, gpu_mem_limit_bytes)
    pipeline = pipeline_class(artifact.manifest.task)
    if slots is None:
        return pipeline(artifact, config)
    if artifact.manifest.task not in GENERATING:
        raise ConfigurationError(f"slots is set for {artifact.manifest.task}; allowed for: {', '.join(GENERATING)}")
    return pipeline(artifact, config, slots)


def pipeline_class(task: str) -> Any:
    """The `pipelines.base.Pipeline` subclass of a task."""
    module, name = _CLASSES[task]
    return getattr(import_module(module), name)
