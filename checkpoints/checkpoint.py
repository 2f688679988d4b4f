"""ResolvedCheckpoint: a checkpoint on this disk, and how its PyTorch model and its tokenizer are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from checkpoints.gguf import GgufTokens
from checkpoints.heads import auto_class
from pipelines.errors import CheckpointError, first_line
from pipelines.runtime.artifact import positions

_UNSET_LENGTH = 1_000_000  # transformers writes 1e30 where a tokenizer knows no limit
_DEFAULT_LENGTH = 512


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A checkpoint on this disk, not loaded yet.

    `config` is its transformers config. `revision` is a commit on the Hub, or `sha256:` and a digest over the files;
    `requested` is the branch, tag or commit that was asked for. `loading` are arguments of every `from_pretrained`.
    `base` is NAME@REVISION of the checkpoint that an adapter was merged into.
    """

    name: str
    path: Path
    config: Any
    revision: str
    requested: str | None = None
    licence: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None

    @property
    def gguf(self) -> Path | None:
        """The GGUF file, where the checkpoint is one."""
        return self.path / self.loading["gguf_file"] if "gguf_file" in self.loading else None

    @property
    def weights_bytes(self) -> int:
        """The size of the weight files."""
        return sum(file.stat().st_size for file in ([self.gguf] if self.gguf else weight_files(self.path)))


def weight_files(path: Path) -> list[Path]:
    """The weight files of a folder that transformers would load: safetensors, else pickles."""
    return sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))


def load_model(checkpoint: ResolvedCheckpoint, task: str, *, allow_untrained_head: bool = False) -> Any:
    """The PyTorch model in fp32, ready for inference. Raises CheckpointError where weights are missing or misshapen."""
    import torch
    import transformers

    loader = getattr(transformers, auto_class(task, checkpoint.config))
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, **checkpoint.loading}
    if getattr(checkpoint.config, "attn_logit_softcapping", None):
        options["attn_implementation"] = "eager"  # transformers' others leave the softcap out, and answer otherwise
    try:
        model, loading = loader.from_pretrained(
            checkpoint.path, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # of safetensors, pickle, zip, the OS or transformers, by the file
        raise CheckpointError(f"the weights of {checkpoint.name} cannot be loaded: {first_line(error)}") from error
    missing = sorted(loading["missing_keys"])
    if missing and not allow_untrained_head:
        raise untrained(checkpoint.name, task, f"the checkpoint lacks {missing[0]} ({len(missing)} tensors in all)")
    if checkpoint.gguf:
        GgufTokens.read(checkpoint.gguf).correct_model(model)
    return _text_part(model).eval()


def _text_part(model: Any) -> Any:
    """The decoder-only model inside one that also reads images or sound (Gemma 3), where transformers has it alone."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = getattr(model.config, "text_config", None)
    if config is None or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not model.can_generate():
        return model
    with torch.device("meta"):
        part = AutoModelForCausalLM.from_config(config)
    decoder = model.get_decoder()
    name = next((name for name, child in part.named_children() if type(child) is type(decoder)), None)
    if name is None:
        return model
    setattr(part, name, decoder)
    part.set_output_embeddings(model.get_output_embeddings())
    part.generation_config = model.generation_config
    return part


def untrained(name: str, task: str, why: str) -> CheckpointError:
    """The error for a checkpoint without a head that was trained for the task."""
    return CheckpointError(
        f"{name} has no trained head for {task}: {why}; its answers would be random. Name a checkpoint that was "
        "fine-tuned for it, fine-tune this one (`sextet finetune`), or pass --allow-untrained-head"
    )


def load_tokenizer(checkpoint: ResolvedCheckpoint) -> Any:
    """The checkpoint's transformers tokenizer, the fast one where there is one. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, **checkpoint.loading)
    except Exception as error:  # whatever a broken file raises, in transformers, tokenizers or sentencepiece
        raise CheckpointError(f"the tokenizer of {checkpoint.name} cannot be read: {first_line(error)}") from error
    if checkpoint.gguf:
        GgufTokens.read(checkpoint.gguf).correct_tokenizer(tokenizer)
    return tokenizer


def max_length(tokenizer: Any, model: Any) -> int:
    """The longest input in tokens, special tokens included, that both tokenizer and position embeddings allow."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _UNSET_LENGTH else []
    if bound := source_positions(model.config):
        limits.append(bound - _first_position(model))
    return int(min(limits, default=_DEFAULT_LENGTH))


def source_positions(config: Any) -> int | None:
    """The most positions of what a model reads; None for a model without a bound."""
    names = ("max_encoder_position_embeddings", "max_position_embeddings", "n_positions")
    # Not config.to_dict(): some names stand for others.
    known = (*names, "original_max_position_embeddings", "rope_scaling", "rope_parameters")
    return positions({name: getattr(config, name, None) for name in known}, names)


def _first_position(model: Any) -> int:
    """The number of the first position: RoBERTa and its descendants count from the padding index on."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("embeddings.position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0


def set_window(tokenizer: Any, max_length: int) -> None:
    """Let question answering read a long context in windows of `max_length` tokens, as the model was trained.

    transformers' pipeline takes the length of its windows from `model_max_length`.
    """
    tokenizer.model_max_length = max_length


def keep_generation_parameters(model: Any) -> None:
    """Let `model` be saved with the generation parameters that it was loaded with.

    Many published checkpoints contradict themselves, such as `{"do_sample": false, "temperature": 0.6}`: transformers
    reads that with a warning, and refuses to write it.
    """
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.__class__ = _kept_generation_config()


@cache
def _kept_generation_config() -> type:
    from transformers import GenerationConfig

    class KeptGenerationConfig(GenerationConfig):  # type: ignore[misc]  # transformers is not typed for mypy
        """Written by `save_pretrained` whatever it holds."""

        def validate(self, strict: bool = False) -> None:
            super().validate(strict=False)

    return KeptGenerationConfig
