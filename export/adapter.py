"""Adapter: PEFT weights (LoRA and its kin) trained on top of a base checkpoint, and the checkpoint that both make.

Its folder holds adapter_config.json and adapter_model.safetensors; perhaps config.json, which names labels and
architecture as a finetuning here does, and a tokenizer of its own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipelines.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_SAVED_PREFIX = "base_model.model."
_COPIES = (".modules_to_save.", ".original_module.")  # of embeddings that PEFT saves under their plain name too
_OUTPUTS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


@dataclass(frozen=True)
class Adapter:
    """`base` is a folder, a Hub id or `starter:NAME`, `base_revision` its commit where it is on the Hub."""

    name: str
    path: Path
    base: str
    base_revision: str | None
    config: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, path: Path, *, allow_pickle: bool) -> Self | None:
        """The adapter in the folder `path`, None where that holds none; CheckpointError where it cannot be used."""
        file = path / CONFIG_NAME
        if not file.is_file():
            return None
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            base = config["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{CONFIG_NAME} of {name} cannot be read ({type(error).__name__}: {error})") from None
        if not isinstance(base, str) or not base:
            raise CheckpointError(f"{CONFIG_NAME} of {name} names no base (base_model_name_or_path is {base!r})")
        if not (path / SAFETENSORS).is_file():
            if not (path / PICKLE).is_file():
                raise CheckpointError(f"{name} is an adapter without weights ({SAFETENSORS})")
            if not allow_pickle:
                raise CheckpointError(
                    f"{name} has only pickled weights ({PICKLE}), which can run code when loaded; "
                    "convert them to safetensors, or trust them with --allow-pickle"
                )
        return cls(name, path, base, config.get("revision"), config)

    def merge(self, base: Path, output: Path, **loading: Any) -> None:
        """Write the merged checkpoint, float32, and its tokenizer; `loading` goes to `from_pretrained` of the base.

        Raises CheckpointError where the two do not fit, or where a part of the model is in neither.
        """
        import peft
        import transformers

        try:
            weights = peft.utils.load_peft_weights(str(self.path), device="cpu")
            model = self._model(base, weights, loading)
            own = (self.path / "tokenizer_config.json").is_file()
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.path if own else base, trust_remote_code=False, **({} if own else loading)
            )
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer))
            wrapped = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(self.path)))
            if not hasattr(wrapped, "merge_and_unload") or wrapped.active_peft_config.is_prompt_learning:
                raise CheckpointError(f"{self.name} is a {self.config['peft_type']} adapter, which no merge can apply")
            loaded = wrapped.load_adapter(str(self.path), wrapped.active_adapter)
            unexpected = [key for key in loaded.unexpected_keys if not any(part in key for part in _COPIES)]
            if strangers := [*loaded.missing_keys, *unexpected]:
                raise CheckpointError(
                    f"{self.name} does not fit its base {self.base}: {strangers[0]} is in one of them only "
                    f"({len(strangers)} tensors in all)"
                )
            merged = wrapped.merge_and_unload(safe_merge=True)
        except CheckpointError:
            raise
        except Exception as error:  # of peft, transformers, safetensors or torch, by what is wrong
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{self.name} cannot be merged into its base {self.base}: {reason[:300]}") from error
        merged.config.architectures = [type(merged).__name__]
        merged.save_pretrained(output)
        tokenizer.save_pretrained(output)

    def _model(self, base: Path, weights: Mapping[str, Any], loading: Mapping[str, Any]) -> Any:
        """The base, with the head that the adapter was trained with; every part of it is in one of the two."""
        import torch
        from transformers import AutoConfig

        if (self.path / "config.json").is_file():
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        else:
            config = AutoConfig.from_pretrained(base, **loading)
            outputs = [tensor.shape[0] for name, tensor in weights.items() if name.endswith(_OUTPUTS)]
            if outputs and outputs[-1] != config.num_labels:
                config.num_labels = outputs[-1]
        model, found = self._class(config).from_pretrained(
            base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **loading
        )
        new = {*found["missing_keys"], *found["mismatched_keys"]}
        if untrained := sorted(key for key in new if _SAVED_PREFIX + key not in weights):
            raise CheckpointError(
                f"{self.name} cannot be merged: neither it nor its base {self.base} holds {untrained[0]} "
                f"({len(untrained)} tensors in all)"
            )
        return model

    def _class(self, config: Any) -> Any:
        """The transformers class that the adapter was trained on."""
        import transformers

        from export.objective import OBJECTIVES

        by_type = {objective.peft_type: objective.model_class for objective in OBJECTIVES.values()}
        kind = self.config.get("task_type")
        if kind in by_type:
            return by_type[kind]
        named = (self.config.get("auto_mapping") or {}).get("base_model_class") or (config.architectures or [""])[0]
        found = getattr(transformers, named, None) if kind is None else None
        if found is None:
            raise CheckpointError(f"{self.name} was trained for task_type {kind}; allowed: {', '.join(by_type)}")
        return found
