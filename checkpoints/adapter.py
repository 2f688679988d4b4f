"""Adapter: PEFT weights (LoRA and its kin) on top of a base checkpoint, and their merge into one checkpoint.

The folder of an adapter holds adapter_config.json and adapter_model.safetensors. It may hold config.json, which names
labels and architecture (`sextet finetune` writes it), and a tokenizer.
"""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from checkpoints.checkpoint import keep_generation_parameters
from checkpoints.frameworks import full_disk
from checkpoints.gguf import GgufTokens
from checkpoints.heads import auto_classes
from pipelines.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_SAVED_PREFIX = "base_model.model."
_COPIES = (".modules_to_save.", ".original_module.")  # PEFT saves these embeddings under their plain name, too
_OUTPUTS = (".classifier.weight", ".classifier.out_proj.weight", ".score.weight")
_WRAPPERS = {"base_layer", "original_module", "token_adapter"}  # names that PEFT puts between a layer and its weight
_PROBE = 24  # tokens on which the merged model is compared with PEFT's
_TOLERANCE = 1e-3  # of the largest logit; in float32, two orders of summing differ by about 1e-5


@dataclass(frozen=True)
class Adapter:
    """`base` is a folder, a Hub id or `starter:NAME`, `base_revision` its commit where it is on the Hub."""

    name: str
    path: Path
    base: str
    base_revision: str | None
    config: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, path: Path) -> Self | None:
        """The adapter in the folder `path`, None where that holds none; CheckpointError where it cannot be used."""
        file = path / CONFIG_NAME
        if not file.is_file():
            return None
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            base = config["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{CONFIG_NAME} of {name} cannot be read ({type(error).__name__}: {error})") from None
        if not isinstance(config.get("revision"), str | None):
            raise CheckpointError(f"{CONFIG_NAME} of {name} has the revision {config['revision']!r}, which is no text")
        if not isinstance(base, str) or not base:
            raise CheckpointError(f"{CONFIG_NAME} of {name} names no base (base_model_name_or_path is {base!r})")
        found = cls(name, path, base, config.get("revision"), config)
        if not found.weights.is_file():
            raise CheckpointError(f"{name} is an adapter without weights ({SAFETENSORS})")
        return found

    @property
    def weights(self) -> Path:
        """The file that PEFT would load: safetensors, else a pickle."""
        safe = self.path / SAFETENSORS
        return safe if safe.is_file() else self.path / PICKLE

    def unread(self) -> list[str]:
        """Settings that this release of PEFT does not know; raises CheckpointError for an unknown kind of adapter."""
        import peft

        kind = self.config.get("peft_type")
        if kind not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
            raise CheckpointError(f"{self.name} is a {kind} adapter, which PEFT {peft.__version__} does not know")
        known = {one.name for one in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
        return sorted(name for name, value in self.config.items() if name not in known and value is not None)

    def merge(self, base: Path, output: Path, **loading: Any) -> None:
        """Write the merged checkpoint, float32, and its tokenizer; `loading` goes to `from_pretrained` of the base.

        Raises CheckpointError where adapter and base do not fit, where a part of the model is in neither, or where the
        merged checkpoint answers otherwise than the adapter on top of its base.
        """
        import torch

        try:
            wrapped, probe = self._wrapped(base, output, loading)
            expected = _outputs(wrapped.get_base_model(), probe)
            merged = _merged(wrapped)
            keep_generation_parameters(merged)
            kind = type(merged)
            merged.config.architectures = [kind.__name__]
            merged.save_pretrained(output)
            del wrapped, merged  # before there is another one
            got = _outputs(kind.from_pretrained(output, dtype=torch.float32), probe)
        except CheckpointError:
            raise
        except Exception as error:  # of peft, transformers, safetensors or torch, by what is wrong
            if full_disk(error):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{self.name} cannot be merged into its base {self.base}: {reason[:300]}") from error
        if not all(bool(one.isfinite().all()) for one in expected):
            raise CheckpointError(f"{self.name} on top of its base {self.base} answers with what is no number")
        largest = max(float(one.abs().max()) for one in expected)
        apart = max(float((one - two).abs().max()) for one, two in zip(got, expected, strict=True))
        if apart > _TOLERANCE * largest:
            raise CheckpointError(
                f"{self.name} cannot be merged into its base {self.base}: a {self.config.get('peft_type')} adapter of "
                f"such layers answers otherwise when it is merged (by {apart:.2g}, where answers reach {largest:.2g})"
            )

    def _wrapped(self, base: Path, output: Path, loading: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The base with the adapter on top, as PEFT runs it, and probe inputs; writes the tokenizer to `output`."""
        import peft
        import transformers

        if str(start := self.config.get("init_lora_weights")).startswith("pissa_niter"):
            raise CheckpointError(
                f"{self.name} cannot be merged: its training changed the base by chance (init_lora_weights is {start})"
                "; save it with path_initial_model_for_weight_conversion, which makes a plain adapter of it"
            )
        weights = peft.utils.load_peft_weights(str(self.path), device="cpu")
        model = self._model(base, weights, loading)
        own = (self.path / "tokenizer_config.json").is_file()
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            self.path if own else base, trust_remote_code=False, **({} if own else loading)
        )
        if "gguf_file" in loading:
            tokens = GgufTokens.read(base / loading["gguf_file"])
            tokens.correct_model(model)
            if not own:
                tokens.correct_tokenizer(tokenizer)
        self._resize(model, weights, tokenizer if own else None)
        tokenizer.save_pretrained(output)
        probe = self._probe(model)
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
        return wrapped.eval(), probe

    def _model(self, base: Path, weights: Mapping[str, Any], loading: Mapping[str, Any]) -> Any:
        """The base with the head of the adapter. Raises CheckpointError for a part that neither of the two holds."""
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

    def _resize(self, model: Any, weights: Mapping[str, Any], tokenizer: Any | None) -> None:
        """Give the model as many embeddings as the adapter holds, and one more where its `tokenizer` pads with it."""
        import torch

        embeddings = model.get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embeddings)
        held = [weights.get(f"{_SAVED_PREFIX}{name}.{part}weight") for part in ("", "base_layer.", "original_module.")]
        rows = next((one.shape[0] for one in held if one is not None), embeddings.num_embeddings)
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        outside = sorted(token for token, index in vocabulary.items() if index >= rows)
        if tokenizer is not None and outside == [tokenizer.pad_token]:  # padding is masked: its embedding is never read
            outside, rows = [], tokenizer.pad_token_id + 1
        if outside:
            raise CheckpointError(
                f"{self.name} cannot be merged: neither it nor its base {self.base} holds the embedding of its token "
                f"{outside[0]!r} ({len(outside)} tokens in all)"
            )
        if rows != embeddings.num_embeddings:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # the same weights each time
                model.resize_token_embeddings(rows)

    def _probe(self, model: Any) -> dict[str, Any]:
        """Inputs of one row: token ids from all over the vocabulary, and the tokens that were trained separately."""
        import torch

        last = model.get_input_embeddings().num_embeddings - 1
        trained = self.config.get("trainable_token_indices") or self.config.get("token_indices") or []
        several = trained.values() if isinstance(trained, Mapping) else [trained]
        ids = [*(last * i // (_PROBE - 1) for i in range(_PROBE)), *(i for some in several for i in some[:_PROBE])]
        end = model.config.eos_token_id  # BART classifies at this token
        ids = [index for index in ids if index != end][: 2 * _PROBE] + ([end] if isinstance(end, int) else [])
        row = torch.tensor([ids])
        probe = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        takes = inspect.signature(model.forward).parameters
        return probe | ({"decoder_input_ids": row} if "decoder_input_ids" in takes else {})

    def _class(self, config: Any) -> Any:
        """The transformers class that the adapter was trained on."""
        import transformers

        by_type = auto_classes()
        kind = self.config.get("task_type")
        if kind in by_type:
            return getattr(transformers, by_type[kind])
        named = (self.config.get("auto_mapping") or {}).get("base_model_class") or (config.architectures or [""])[0]
        found = getattr(transformers, named, None) if kind is None else None
        if found is None:
            raise CheckpointError(f"{self.name} was trained for task_type {kind}; allowed: {', '.join(by_type)}")
        return found


def _outputs(model: Any, probe: Mapping[str, Any]) -> list[Any]:
    """The outputs of a model: logits (1, tokens, vocabulary) or (1, labels), or two of (1, tokens)."""
    import torch

    with torch.inference_mode():
        found = model.eval()(**probe, return_dict=True)
    return [found[name] for name in ("logits", "start_logits", "end_logits") if name in found]


def _merged(wrapped: Any) -> Any:
    """The merged model. Layers that shared a weight (embeddings and output) still do, if their weights stayed equal."""
    import torch

    model = wrapped.get_base_model()
    tied, groups = model.config.tie_word_embeddings, _separated(model)
    merged = wrapped.merge_and_unload(safe_merge=True)
    weights = dict(merged.named_parameters(remove_duplicate=False))
    for names in groups:
        found = [weights[name] for name in names if name in weights]
        tied = tied and all(torch.equal(found[0], other) for other in found[1:])
    merged.config.tie_word_embeddings = tied
    merged.tie_weights()
    return merged


def _separated(model: Any) -> list[list[str]]:
    """Give each layer its own weights, so that merging one does not change another; returns the names that shared."""
    import torch

    sharing: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for weight, parameter in list(module.named_parameters(prefix=name, recurse=False)):
            names = sharing.setdefault(id(parameter), [])
            if names:
                setattr(module, weight.rpartition(".")[2], torch.nn.Parameter(parameter.detach().clone()))
            names.append(".".join(part for part in weight.split(".") if part not in _WRAPPERS))
    return [names for names in sharing.values() if len(names) > 1]
