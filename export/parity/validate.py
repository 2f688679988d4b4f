"""Validate: compare exported graphs with the PyTorch model that they were made from, on inputs of many kinds.

Differences are absolute, on logits of unit scale: both sides are divided by the reference's standard deviation where
it is above one. An answer is confident where the reference finds it at least twice as likely as the second best.
"""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from export.parity.encoder import ExportedEncoder
from export.parity.generation import (
    ExportedDecoder,
    Perplexity,
    PromptSlots,
    exported_decoder,
    torch_answer,
    torch_logits,
)
from export.parity.samples import QUESTIONS, TEXTS
from pipelines.errors import CheckpointError
from pipelines.runtime.artifact import ModelArtifact, Parity, TokenizerSettings
from pipelines.runtime.providers import Device, find_problems
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import TextOrPair, Tokenizer
from pipelines.tasks import TASKS

TOLERANCE = 1e-4
LEAD = math.log(2)
AGREEMENT = 0.98
INT4_AGREEMENT = 0.5  # finds broken graphs; perplexity measures the rest: one close choice changes all later tokens
MOST_SURPRISED = {"int8": 0.15, "int4": 0.5}
"""The largest increase of perplexity over PyTorch's, by precision, for models that generate."""
INPUTS = 64
LARGEST_FP16 = 65504.0
_BATCH_SIZES = (1, 2, 4, 9, 16, 32)  # INPUTS in all
# Bounds of the time: tokens of an encoder's input, words of a prompt, generated tokens.
_LONGEST_TOKENS = 384
_LONGEST_WORDS = 24
_NEW_TOKENS = 6
_LONGEST_SPAN = 15
_WINDOW_TOKENS = 32  # of context in a window
_NAMED = 20


@dataclass(frozen=True)
class _Batch:
    names: list[str]
    encodings: list[Any]


@dataclass
class _Comparison:
    """The comparisons so far; `confident` and `agreed` have an entry for each compared label, span or token."""

    settings: TokenizerSettings
    outside: int | None = None
    largest: float = 0.0
    unit: float = 1.0
    confident: list[bool] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)
    perplexity: Perplexity = field(default_factory=Perplexity)

    def differ(self, reference: np.ndarray, exported: np.ndarray) -> None:
        """Record the difference of two arrays of logits; `unit` becomes their scale."""
        self.unit = max(1.0, float(reference.std()))
        # max() ignores NaN: an output with NaN counts as infinitely different.
        difference = float(np.abs(reference - exported).max()) if np.isfinite(exported).all() else math.inf
        self.largest = max(self.largest, difference / self.unit)

    def decide(self, name: str, lead: float, expected: object, got: object, shortfall: float) -> None:
        """Record one answer. In logits of the reference, `lead` is that of the best over the second best answer, and
        `shortfall` is how far `got` lies behind `expected`.
        """
        equal = expected == got or shortfall <= 4 * TOLERANCE * self.unit
        self.confident.append(lead >= LEAD)
        self.agreed.append(equal)
        if not equal:
            sure = "confident" if lead >= LEAD else "close"
            self.disagreements.append(f"{name}: {expected} became {got} ({sure})")


def validate(artifact: ModelArtifact, model: Any, outside: int | None = None) -> Parity:
    """Compare the graphs of an artifact with `model`: plain fp32 must be exact, the others must agree.

    `outside` is the first id that the tokenizer has and the model has not (see export.tokenizers.pieces).
    """
    manifest = artifact.manifest
    compared = _Comparison(manifest.tokenizer, outside)
    config = SessionConfig(device="cpu", threads=_threads())
    batches = list(_batches(artifact, _inputs(artifact)))
    compared_on = "CPU"
    if TASKS[manifest.task].generates:
        start = model.generation_config.decoder_start_token_id if model.config.is_encoder_decoder else None
        device: Device = "cuda" if manifest.device != "cpu" and not any(find_problems("cuda")) else "cpu"
        compared_on = device.upper()
        decoder = exported_decoder(artifact, replace(config, device=device), start)
        for batch in batches:
            _compare_tokens(compared, batch, decoder, model)
        if isinstance(decoder, PromptSlots):  # decoder-only: reading a text predicts each of its tokens
            texts = [encoding.ids for batch in batches for encoding in batch.encodings if len(encoding) > 1]
            compared.perplexity.read(model, decoder.session, texts)
    else:
        encoder = ExportedEncoder(artifact, config)
        for batch in batches:
            if "start_logits" in encoder.output_names:
                _compare_spans(compared, batch, encoder, model)
            else:
                _compare_labels(compared, batch, encoder, model, manifest.labels)
        compared_on = encoder.compared_on
        if manifest.precision == "fp16" and encoder.largest_activation > LARGEST_FP16:
            raise CheckpointError(
                f"{manifest.source.checkpoint} does not fit in fp16: its activations reach "
                f"{encoder.largest_activation:.3g}, and fp16 ends at {LARGEST_FP16:g}; export it as fp32"
            )
    exact = manifest.precision == "fp32" and manifest.optimization != "O3"  # O3 approximates Gelu
    least = INT4_AGREEMENT if manifest.precision == "int4" else AGREEMENT
    parity = _verdict(compared, exact, least, sum(len(batch.names) for batch in batches))
    return _bounded(replace(parity, compared_on=compared_on), MOST_SURPRISED.get(manifest.precision))


def _bounded(parity: Parity, most: float | None) -> Parity:
    """The verdict with a bound on the increase of perplexity, where it was measured."""
    increase = parity.perplexity_increase
    if increase is None or most is None:
        return parity
    return replace(
        parity,
        threshold=f"{parity.threshold}, and perplexity at most {most:.0%} above PyTorch's",
        passed=parity.passed and increase <= most,
    )


def _verdict(compared: _Comparison, exact: bool, least: float, inputs: int) -> Parity:
    confident, agreed = np.array(compared.confident), np.array(compared.agreed)
    counted = agreed[confident] if confident.any() else agreed
    agreement = float(counted.mean())
    if exact:
        threshold = f"logits within {TOLERANCE:g}, and equal answers everywhere"
        passed = compared.largest <= TOLERANCE and bool(agreed.all())
    else:
        threshold = f"at least {least:.0%} of {len(counted)} confident answers equal"
        passed = agreement >= least and bool(np.isfinite(compared.largest))
    named = sorted(compared.disagreements, key=lambda name: name.endswith("(close)"))
    shown = tuple(named[:_NAMED])
    return Parity(passed, inputs, compared.largest, agreement, threshold, shown, compared.perplexity.values())


# --- inputs ---


def _inputs(artifact: ModelArtifact) -> list[TextOrPair]:
    """At least 64 inputs: whole samples, their beginnings, several of them in a row, and pairs."""
    rng = random.Random(0)
    inputs: list[TextOrPair] = []
    task = TASKS[artifact.manifest.task]
    if len(task.text_fields) > 1:
        inputs += QUESTIONS
        while len(inputs) < INPUTS:
            (question, _), (_, context) = rng.choice(QUESTIONS), rng.choice(QUESTIONS)
            inputs.append((question, " ".join([context, *rng.sample(TEXTS, rng.choice([0, 1, 3, 8]))])))
        return inputs
    longest = _LONGEST_WORDS if task.generates else sys.maxsize
    inputs += [_first_words(text, longest) for text in TEXTS]
    if "text_pair" in task.optional_columns:
        inputs += [(rng.choice(TEXTS), rng.choice(TEXTS)) for _ in range(8)]
    while len(inputs) < INPUTS:
        text = " ".join(rng.sample(TEXTS, rng.choice([1, 1, 2, 4, 12])))
        inputs.append(_first_words(text, min(longest, rng.randint(1, len(text.split())))))
    return inputs


def _batches(artifact: ModelArtifact, inputs: Sequence[TextOrPair]) -> Iterator[_Batch]:
    """Batches of several sizes, each with short and long inputs."""
    manifest = artifact.manifest
    template = manifest.prompt_template
    prompts = [template.replace("{text}", str(one)) if template else one for one in inputs]
    longest = manifest.tokenizer.max_length if template else min(manifest.tokenizer.max_length, _LONGEST_TOKENS)
    encodings = Tokenizer(artifact).encode(prompts, max_length=longest, add_special_tokens=template is None)
    start = 0
    for size in _BATCH_SIZES:
        rows = range(start, start + size)
        names = [_name(row, inputs[row], len(encodings[row]), size) for row in rows]
        yield _Batch(names, [encodings[row] for row in rows])
        start = rows.stop
    if len(TASKS[manifest.task].text_fields) > 1:
        yield from _windows(artifact, inputs)


def _windows(artifact: ModelArtifact, inputs: Sequence[TextOrPair]) -> Iterator[_Batch]:
    """The windows of the longest context: a tokenizer may treat the later ones in another way."""
    longest = max(inputs, key=lambda pair: len(pair[1]))
    question = len(Tokenizer(artifact).encode([longest[0]])[0])
    (encodings,) = Tokenizer(artifact).windows(
        [longest], max_length=question + _WINDOW_TOKENS, stride=_WINDOW_TOKENS // 4, sequence=1
    )
    names = [f"{_name(0, longest, len(one), len(encodings))} window {n}" for n, one in enumerate(encodings)]
    yield _Batch(names, list(encodings))


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def _name(index: int, given: TextOrPair, tokens: int, batch: int) -> str:
    text = given if isinstance(given, str) else " | ".join(given)
    shown = text if len(text) <= 40 else text[:37] + "..."
    return f"input {index} ({tokens} tokens, batch of {batch}) {shown!r}"


# --- one batch, by kind of answer ---


def _compare_labels(
    compared: _Comparison, batch: _Batch, encoder: ExportedEncoder, model: Any, labels: Sequence[str]
) -> None:
    """One answer per text or token, or per label where labels do not exclude each other."""
    reference, exported, mask = encoder.compare(batch.encodings, model)
    expected, got = reference["logits"], exported["logits"]  # (rows, labels) or (rows, tokens, labels)
    names = np.array(batch.names, dtype=object)
    if expected.ndim == 3:
        positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)[mask]
        names = np.array(
            [f"{batch.names[row]} token {t}" for row, t in zip(np.nonzero(mask)[0], positions, strict=True)]
        )
        expected, got = expected[mask], got[mask]
    compared.differ(expected, got)
    kind = model.config.problem_type
    if kind == "regression" or len(labels) == 1:
        for name, one, other in zip(names, expected, got, strict=True):
            far = float(np.abs(one - other).max()) / compared.unit
            compared.decide(str(name), LEAD, f"{one[0]:.3f}", f"{one[0] if far <= 0.1 else other[0]:.3f}", far)
    elif kind == "multi_label_classification":
        for name, one, other in zip(names, expected, got, strict=True):
            for label, before, after in zip(labels, one, other, strict=True):
                expects, gets = (f"{label}: {'yes' if value > 0 else 'no'}" for value in (before, after))
                compared.decide(str(name), abs(float(before)), expects, gets, abs(float(before)))
    else:
        for name, one, other in zip(names, expected, got, strict=True):
            _decide_choice(compared, str(name), one, other, labels)


def _compare_spans(compared: _Comparison, batch: _Batch, encoder: ExportedEncoder, model: Any) -> None:
    """One answer per question: the best span of the context."""
    reference, exported, mask = encoder.compare(batch.encodings, model)
    sides = {name: (reference[name], exported[name]) for name in ("start_logits", "end_logits")}
    for before, after in sides.values():
        compared.differ(before[mask], after[mask])
    for row, (name, encoding) in enumerate(zip(batch.names, batch.encodings, strict=True)):
        context = np.array([sequence == 1 for sequence in encoding.sequence_ids])
        scores = [
            _span_scores(sides["start_logits"][side][row], sides["end_logits"][side][row], context) for side in (0, 1)
        ]
        expects, gets = (f"tokens {divmod(int(one.argmax()), one.shape[1])}" for one in scores)
        best, second = np.sort(scores[0], axis=None)[[-1, -2]]
        compared.decide(name, float(best - second), expects, gets, float(best - scores[0].flat[scores[1].argmax()]))


def _span_scores(start: np.ndarray, end: np.ndarray, context: np.ndarray) -> np.ndarray:
    """(first token, last token) -> start + end logit; far below all others where that is no span of the context."""
    tokens = len(context)
    length = np.arange(tokens)[None, :] - np.arange(tokens)[:, None] + 1
    allowed = context[:, None] & context[None, :] & (length >= 1) & (length <= _LONGEST_SPAN)
    return np.where(allowed, start[:tokens, None] + end[None, :tokens], -1e9)


def _compare_tokens(compared: _Comparison, batch: _Batch, decoder: ExportedDecoder, model: Any) -> None:
    """One answer per decoding step: the most likely token."""
    inputs = [encoding.ids for encoding in batch.encodings]
    forced = _forced_token(compared.settings, model)
    steps = _NEW_TOKENS + (forced is not None)
    if isinstance(decoder, PromptSlots):
        written = decoder.answers(inputs, steps)
        exported = [answer.logits for answer in written]
        texts = [[*ids, *answer.tokens[:-1].tolist()] for ids, answer in zip(inputs, written, strict=True)]
        references = [logits[-steps:] for logits in torch_logits(model, [_known(compared, text) for text in texts])]
    else:
        answers = [torch_answer(model, _known(compared, ids), steps, forced) for ids in inputs]
        exported = decoder.logits(inputs, [answer.tokens for answer in answers])
        references = [answer.logits for answer in answers]
    for name, reference, logits in zip(batch.names, references, exported, strict=True):
        compared.differ(reference, logits)
        if not isinstance(decoder, PromptSlots):
            compared.perplexity.observe(reference, logits, reference.argmax(-1))
        for step, (expected, got) in enumerate(zip(reference, logits, strict=True)):
            _decide_choice(compared, f"{name} step {step}", expected, got, None)


def _forced_token(settings: TokenizerSettings, model: Any) -> int | None:
    """The token that every answer of an encoder-decoder begins with, such as that of a language."""
    if not model.config.is_encoder_decoder:
        return None
    forced: int | None = model.generation_config.forced_bos_token_id
    return forced if forced is not None else next(iter(settings.languages.values()), None)


def _known(compared: _Comparison, ids: Sequence[int]) -> Sequence[int]:
    """The ids as the model knows them: the exported graph reads those from `outside` on as the unknown token."""
    unknown = compared.settings.unk_token_id or 0
    return ids if compared.outside is None else [one if one < compared.outside else unknown for one in ids]


def _decide_choice(
    compared: _Comparison, name: str, expected: np.ndarray, got: np.ndarray, labels: Sequence[str] | None
) -> None:
    """The highest of several logits."""
    best, chosen = int(expected.argmax()), int(got.argmax())
    second = float(np.partition(expected, -2)[-2])
    expects, gets = (labels[index] if labels else f"token {index}" for index in (best, chosen))
    lead, shortfall = float(expected[best]) - second, float(expected[best] - expected[chosen])
    compared.decide(name, lead, expects, gets, shortfall)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
