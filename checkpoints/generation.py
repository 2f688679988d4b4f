"""Generation parameters of a checkpoint, which are kept as they are: many published ones contradict each other.

transformers reads `{"do_sample": false, "temperature": 0.6}` with a warning, and refuses to write it.
"""

from typing import Any

from transformers import GenerationConfig


class KeptGenerationConfig(GenerationConfig):  # type: ignore[misc]  # transformers is not typed for mypy
    """One that `save_pretrained` writes whatever it holds."""

    def validate(self, strict: bool = False) -> None:
        super().validate(strict=False)


def keep_generation_parameters(model: Any) -> None:
    """Let `model` be saved with the parameters that it was loaded with."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.__class__ = KeptGenerationConfig
