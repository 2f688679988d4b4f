"""Validate: compare exported graphs with the PyTorch model that they were made from, on inputs of many kinds.

Inputs are samples of many kinds, in batches of several sizes. export.parity.comparison judges what they differ by.
"""

import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.parity.activations import Activations
from export.parity.comparison import LEAD, Comparison
from export.parity.encoder import ExportedEncoder
from export.parity.generation import ExportedDecoder, PromptSlots, exported_decoder, torch_answer, torch_logits
from export.parity.samples import QUESTIONS, TEXTS
from pipelines.runtime.artifact import ModelArtifact, Parity, TokenizerSettings
from pipelines.runtime.providers import Device, find_problems
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import TextOrPair, Tokenizer
from pipelines.tasks import TASKS

INPUTS = 64
_BATCH_SIZES = (1, 2, 4, 9, 16, 32)  # INPUTS in all
# Bounds of the time: tokens of an encoder's input, words of a prompt, generated tokens.
_LONGEST_TOKENS = 384
_LONGEST_WORDS = 24
_NEW_TOKENS = 6
_LONGEST_SPAN = 15
_WINDOW_TOKENS = 32  # of context in a window


@dataclass(frozen=True)
class _Batch:
    names: list[str]
    encodings: list[Any]


@dataclass(frozen=True)
class _Known:
    """The ids that the model knows: the exported graph reads those from `outside` on as the unknown token."""

    settings: TokenizerSettings
    outside: int | None

    def __call__(self, ids: Sequence[int]) -> Sequence[int]:
        unknown = self.settings.unk_token_id or 0
        return ids if self.outside is None else [one if one < self.outside else unknown for one in ids]


def validate(artifact: ModelArtifact, model: Any, outside: int | None = None) -> Parity:
    """Compare the graphs of an artifact with `model`: plain fp32 must be exact, the others must agree.

    `outside` is the first id that the tokenizer has and the model has not (see export.tokenizers.pieces).
    """
    manifest = artifact.manifest
    compared = Comparison()
    config = SessionConfig(device="cpu", threads=_threads())
    batches = list(_batches(artifact, _inputs(artifact)))
    compared_on = "CPU"
    if TASKS[manifest.task].generates:
        start = model.generation_config.decoder_start_token_id if model.config.is_encoder_decoder else None
        device: Device = "cuda" if manifest.device != "cpu" and not any(find_problems("cuda")) else "cpu"
        compared_on = device.upper()
        decoder = exported_decoder(artifact, replace(config, device=device), start)
        known, activations = _Known(manifest.tokenizer, outside), Activations()
        with activations.observed(model):
            for batch in batches:
                _compare_tokens(compared, batch, decoder, model, known)
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
        compared_on, activations = encoder.compared_on, encoder.activations
    activations.check(manifest)
    exact = manifest.precision == "fp32" and manifest.optimization != "O3"  # O3 approximates Gelu
    parity = compared.verdict(manifest.precision, sum(len(batch.names) for batch in batches), exact=exact)
    return replace(parity, compared_on=compared_on)


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
    if TASKS[manifest.task].generates and "model" in manifest.graphs:
        longest = max(1, longest - _NEW_TOKENS)  # the answer takes positions, too
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
    compared: Comparison, batch: _Batch, encoder: ExportedEncoder, model: Any, labels: Sequence[str]
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
    kind = model.config.problem_type
    is_number = kind == "regression" or len(labels) == 1
    compared.differ(expected, got, compete=not is_number and kind != "multi_label_classification")
    if is_number:
        for name, one, other in zip(names, expected, got, strict=True):
            far = float(np.abs(one - other).max()) / compared.unit
            compared.decide(str(name), LEAD, f"{one[0]:.3f}", f"{one[0] if far <= 0.1 else other[0]:.3f}", far)
    elif kind == "multi_label_classification":
        for name, one, other in zip(names, expected, got, strict=True):
            for label, before, after in zip(labels, one, other, strict=True):
                expects, gets = (f"{label}: {'yes' if value > 0 else 'no'}" for value in (before, after))
                lead = abs(float(before))
                compared.decide(str(name), lead, expects, gets, lead, math.tanh(lead / 2))
    else:
        for name, one, other in zip(names, expected, got, strict=True):
            decide_choice(compared, str(name), one, other, labels)


def _compare_spans(compared: Comparison, batch: _Batch, encoder: ExportedEncoder, model: Any) -> None:
    """One answer per question: the best span of the context."""
    reference, exported, mask = encoder.compare(batch.encodings, model)
    sides = {name: (reference[name], exported[name]) for name in ("start_logits", "end_logits")}
    compared.differ(
        *(np.stack([side[one][mask] for one in sides], -1) for side in (reference, exported)), compete=False
    )
    for row, (name, encoding) in enumerate(zip(batch.names, batch.encodings, strict=True)):
        context = np.array([sequence == 1 for sequence in encoding.sequence_ids])
        scores = [
            _span_scores(sides["start_logits"][side][row], sides["end_logits"][side][row], context) for side in (0, 1)
        ]
        expects, gets = (f"tokens {divmod(int(one.argmax()), one.shape[1])}" for one in scores)
        best, second = np.sort(scores[0], axis=None)[[-1, -2]]
        shortfall = float(best - scores[0].flat[scores[1].argmax()])
        compared.decide(name, float(best - second), expects, gets, shortfall, _behind(scores[0], shortfall))


def _span_scores(start: np.ndarray, end: np.ndarray, context: np.ndarray) -> np.ndarray:
    """(first token, last token) -> start + end logit; far below all others where that is no span of the context."""
    tokens = len(context)
    length = np.arange(tokens)[None, :] - np.arange(tokens)[:, None] + 1
    allowed = context[:, None] & context[None, :] & (length >= 1) & (length <= _LONGEST_SPAN)
    return np.where(allowed, start[:tokens, None] + end[None, :tokens], -1e9)


def _compare_tokens(compared: Comparison, batch: _Batch, decoder: ExportedDecoder, model: Any, known: _Known) -> None:
    """One answer per decoding step: the most likely token."""
    inputs = [encoding.ids for encoding in batch.encodings]
    forced = _forced_token(known.settings, model)
    steps = _NEW_TOKENS + (forced is not None)
    if isinstance(decoder, PromptSlots):
        written = decoder.answers(inputs, steps)
        exported = [answer.logits for answer in written]
        texts = [[*ids, *answer.tokens[:-1].tolist()] for ids, answer in zip(inputs, written, strict=True)]
        references = [logits[-steps:] for logits in torch_logits(model, [known(text) for text in texts])]
    else:
        answers = [torch_answer(model, known(ids), steps, forced) for ids in inputs]
        exported = decoder.logits(inputs, [answer.tokens for answer in answers])
        references = [answer.logits for answer in answers]
    for name, reference, logits in zip(batch.names, references, exported, strict=True):
        compared.differ(reference, logits, compete=True)
        if not isinstance(decoder, PromptSlots):
            compared.perplexity.observe(reference, logits, reference.argmax(-1))
        for step, (expected, got) in enumerate(zip(reference, logits, strict=True)):
            decide_choice(compared, f"{name} step {step}", expected, got, None)


def _forced_token(settings: TokenizerSettings, model: Any) -> int | None:
    """The token that every answer of an encoder-decoder begins with, such as that of a language."""
    if not model.config.is_encoder_decoder:
        return None
    forced: int | None = model.generation_config.forced_bos_token_id
    return forced if forced is not None else next(iter(settings.languages.values()), None)


def decide_choice(
    compared: Comparison, name: str, expected: np.ndarray, got: np.ndarray, labels: Sequence[str] | None
) -> None:
    """The highest of several logits."""
    best, chosen = int(expected.argmax()), int(got.argmax())
    second = float(np.partition(expected, -2)[-2])
    expects, gets = (labels[index] if labels else f"token {index}" for index in (best, chosen))
    lead, shortfall = float(expected[best]) - second, float(expected[best] - expected[chosen])
    compared.decide(name, lead, expects, gets, shortfall, _behind(expected, shortfall))


def _behind(scores: np.ndarray, shortfall: float) -> float:
    """How much less likely than the best of some scores one is that lies `shortfall` below it."""
    if not shortfall:
        return 0.0
    return -math.expm1(-shortfall) / float(np.exp(scores - scores.max()).sum())


def _threads() -> int:
    import torch

    return torch.get_num_threads()
