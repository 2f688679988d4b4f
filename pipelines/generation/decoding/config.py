"""GenerationConfig: everything that decides which tokens an answer has.

The values come from four places, the later ones win: transformers' defaults, the task's (`transformers.pipeline`
has its own), the checkpoint's generation_config.json and `task_specific_params` of its config.json, the request.
Names and meanings are those of transformers 4.57.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from pipelines.errors import ArtifactError, InvalidInputError

MAX_SEQUENCES = 32
"""The most beams, or samples, of one request: each has a KV cache of its own."""

_FACTORS = "1e-9 to 1e9"  # scores stay finite in float32 when they are multiplied with these, or divided by them
_LARGEST_POWER = 10  # of a length in tokens, for the same reason
_DEFAULT_MAX_LENGTH = 20  # transformers' own; without another length it counts new tokens

# name -> (accepts, what is allowed). None means "off" and is not checked.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_length": (lambda value: value >= 1, "an integer from 1"),
    "max_new_tokens": (lambda value: value >= 1, "an integer from 1"),
    "min_length": (lambda value: value >= 0, "an integer from 0"),
    "min_new_tokens": (lambda value: value >= 0, "an integer from 0"),
    "num_beams": (lambda value: 1 <= value <= MAX_SEQUENCES, f"1 to {MAX_SEQUENCES}"),
    "num_return_sequences": (lambda value: 1 <= value <= MAX_SEQUENCES, f"1 to {MAX_SEQUENCES}"),
    "early_stopping": (lambda value: value in (True, False, "never"), "true, false or 'never'"),
    "length_penalty": (lambda value: abs(value) <= _LARGEST_POWER, f"-{_LARGEST_POWER} to {_LARGEST_POWER}"),
    "temperature": (lambda value: _is_factor(value), _FACTORS),
    "top_k": (lambda value: value >= 0, "an integer from 0, which keeps all tokens"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "0 to 1"),
    "typical_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "repetition_penalty": (lambda value: _is_factor(value), _FACTORS),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "-2 to 2"),
    "presence_penalty": (lambda value: -2 <= value <= 2, "-2 to 2"),
    "count_penalty": (lambda value: -2 <= value <= 2, "-2 to 2"),
    "no_repeat_ngram_size": (lambda value: value >= 0, "an integer from 0"),
}
# Unsupported options of transformers, with the values that leave the output unchanged.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1, 1.0),
    "sequence_bias": (None,),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0.0, 0),
    "encoder_repetition_penalty": (None, 1.0, 1),
    "encoder_no_repeat_ngram_size": (None, 0),
    "remove_invalid_values": (None, False),
    "exponential_decay_length_penalty": (None,),
    "epsilon_cutoff": (None, 0.0, 0),
    "eta_cutoff": (None, 0.0, 0),
    "watermarking_config": (None,),
    "penalty_alpha": (None, 0.0, 0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "token_healing": (None, False),
    "stop_strings": (None,),
    "max_time": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "forced_decoder_ids": (None,),
    "custom_generate": (None,),
}
# The values for null in a generation_config.json, which switch the option off.
_OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "length_penalty": 1.0, "min_length": 0}
_OFF |= {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "num_return_sequences": 1}
_OFF |= {"do_sample": False, "early_stopping": False, "renormalize_logits": False}


@dataclass(frozen=True)
class GenerationConfig:
    """How one answer is decoded. Lengths are in tokens.

    Unresolved (as a task's default), `max_length` and `min_length` count prompt and answer, and `max_new_tokens` and
    `min_new_tokens`, where given, win over them. `for_prompt` resolves all four into the first two.
    """

    max_length: int | None = _DEFAULT_MAX_LENGTH
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    renormalize_logits: bool = False
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0  # text-generation-inference's; transformers has none
    presence_penalty: float = 0.0  # OpenAI's, of the tokens of the answer
    count_penalty: float = 0.0  # what OpenAI calls frequency_penalty
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()  # OpenAI's: what is added to the logits of some tokens
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()

    @classmethod
    def of_checkpoint(
        cls, model: Mapping[str, Any], task: Mapping[str, Any], task_specific: Mapping[str, Any] | None = None
    ) -> Self:
        """The config that `transformers.pipeline` decodes with.

        `model` is generation_config.json, `task` the pipeline's defaults, `task_specific` the entry of
        `task_specific_params` in config.json. Raises ArtifactError for a value that changes the output and that is
        not supported, or that is out of range.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        values = _filled({**defaults, **task}, model)
        # A model that states its own total length is not bound by the pipeline's default budget.
        own_length = values["max_length"] not in (None, _DEFAULT_MAX_LENGTH)
        if own_length and values["max_new_tokens"] == task.get("max_new_tokens"):
            values["max_new_tokens"] = None
        values |= {name: value for name, value in (task_specific or {}).items() if name != "prefix"}
        values = _filled(values, model)
        if values["max_new_tokens"] is None and values["max_length"] == _DEFAULT_MAX_LENGTH:
            values["max_new_tokens"] = _DEFAULT_MAX_LENGTH
        return cls(**_checked({name: _OFF.get(name) if value is None else value for name, value in values.items()}))

    def with_request(self, given: Mapping[str, Any]) -> Self:
        """This config with a request's own values; raises InvalidInputError for values that make no sense.

        Options without effect are refused too: sampling options without sampling, beam options without
        beams, two ways to say a length.
        """
        for name, value in given.items():
            accepts, allowed = _ALLOWED.get(name, (None, ""))
            if accepts is not None and not accepts(value):
                raise InvalidInputError(f"is {value!r}; allowed: {allowed}", ("parameters", name))
        for ends in ("max", "min"):
            if f"{ends}_length" in given and f"{ends}_new_tokens" in given:
                both = f"has both {ends}_length and {ends}_new_tokens; allowed: one of them"
                raise InvalidInputError(both, ("parameters",))
        for lowest, highest in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
            if lowest in given and highest in given and given[lowest] > given[highest]:
                raise InvalidInputError(
                    f"is {given[lowest]}; allowed: at most {highest}, {given[highest]}", ("parameters", lowest)
                )
        changes = dict(given)
        for ends in ("max", "min"):
            if f"{ends}_length" in given:  # else the default max_new_tokens would override the requested length
                changes[f"{ends}_new_tokens"] = None
        config = replace(self, **changes)
        defaults = GenerationConfig()
        for needs, present, names in (
            ("do_sample: true", config.do_sample, ("temperature", "top_k", "top_p", "min_p", "typical_p")),
            ("num_beams above 1", config.num_beams > 1, ("length_penalty", "early_stopping")),
        ):
            for name in names:
                if not present and name in given and given[name] not in (_OFF.get(name), getattr(defaults, name)):
                    raise InvalidInputError(f"is {given[name]!r}; allowed: only with {needs}", ("parameters", name))
        most = MAX_SEQUENCES if config.num_beams == 1 and config.do_sample else config.num_beams
        if config.num_return_sequences > most:
            raise InvalidInputError(
                f"is {config.num_return_sequences}; allowed: 1 to {most}, which is "
                + ("the most" if config.do_sample and config.num_beams == 1 else "num_beams, or do_sample: true"),
                ("parameters", "num_return_sequences"),
            )
        return config

    def for_prompt(self, prompt_tokens: int, window: int | None) -> Self:
        """This config with the lengths resolved for a prompt: totals, of which `max_length` fits into `window`."""
        longest = self.max_length if self.max_new_tokens is None else prompt_tokens + self.max_new_tokens
        bounds = [bound for bound in (longest, window) if bound is not None]
        if not bounds:
            raise ArtifactError("neither generation_config.json nor config.json bounds the length of an answer")
        shortest = self.min_length if self.min_new_tokens is None else prompt_tokens + self.min_new_tokens
        return replace(self, max_length=min(bounds), min_length=shortest, max_new_tokens=None, min_new_tokens=None)

    def guided(self) -> Self:
        """This config for an answer that is held to a grammar, which says how it begins and when it is complete."""
        return replace(self, min_length=0, forced_bos_token_id=None, forced_eos_token_id=())

    @property
    def n_sequences(self) -> int:
        """How many sequences are decoded for one answer."""
        return max(self.num_beams, self.num_return_sequences)


def _is_factor(value: float) -> bool:
    return 1e-9 <= value <= 1e9


def _filled(values: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """`values` where they differ from transformers' defaults, the model's own elsewhere."""
    defaults = {field.name: field.default for field in fields(GenerationConfig)}
    known = {name: value for name, value in model.items() if name in defaults or name in _UNSUPPORTED}
    filled = {**values, **{name: value for name, value in known.items() if values.get(name) == defaults.get(name)}}
    if filled["temperature"] == 0.0:  # how some checkpoints spell greedy
        filled |= {"do_sample": False, "temperature": 1.0}
    return filled


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a checkpoint as fields of GenerationConfig; raises ArtifactError."""
    for name, neutral in _UNSUPPORTED.items():
        if name in values and values[name] not in neutral:
            raise ArtifactError(f"generation_config.json sets {name} to {values[name]!r}, which is not supported")
    known = {field.name: values[field.name] for field in fields(GenerationConfig)}
    for name, (accepts, allowed) in _ALLOWED.items():
        if known[name] is not None and not accepts(known[name]):
            raise ArtifactError(f"generation_config.json sets {name} to {known[name]!r}; allowed: {allowed}")
    for name in ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        ids = known[name]
        known[name] = () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
    known["bad_words_ids"] = tuple(tuple(word) for word in known["bad_words_ids"] or ())
    return known
