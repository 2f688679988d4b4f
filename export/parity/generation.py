"""Generation on both sides: the most likely tokens of PyTorch and of the exported graphs, and their logits.

The graphs run in the decoders of `pipelines.generation`. One side reads the tokens that the other chose, so that one
difference does not make all later steps incomparable. A decoder-only graph with its KV cache in slots reads each prompt
into a slot in chunks, all slots step together, and PyTorch then reads whole texts, several in a forward. Elsewhere
PyTorch chooses the tokens, asked as serving asks: `model.generate` for one request, without padding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from checkpoints.checkpoint import source_positions
from pipelines.errors import first_line
from pipelines.generation.decoding.logits import log_softmax
from pipelines.generation.plain.decoder import open_decoder
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig

_FORWARD_BYTES = 2**28  # of PyTorch's logits at once
_CHUNK_TOKENS = 16  # so that most prompts take several
_CHECKED_TOKENS, _CHECKED_STEPS = (40, 9), 6
_BEYOND_WINDOW, _LONGEST_CHECK = 24, 600  # tokens
_CHECKED_DIFFERENCE = 1e-2  # of logits of unit scale: a wrong graph is far off, and parity is strict later


@dataclass(frozen=True)
class Answer:
    """The tokens (steps,) that one side chose, and its logits (steps, vocab) float32 for each of them."""

    tokens: np.ndarray
    logits: np.ndarray


def torch_answer(model: Any, ids: Sequence[int], steps: int, forced: int | None = None) -> Answer:
    """At most `steps` greedy tokens after a prompt, or for a source; an encoder-decoder's first one may be `forced`."""
    import torch
    from transformers import GenerationConfig

    own = model.generation_config
    special = {
        name: getattr(own, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        if getattr(own, name) is not None
    }
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, num_beams=1, forced_bos_token_id=forced, **special)
    row = torch.tensor([list(ids)])
    model.generation_config = config  # its penalties and the like change which token is chosen, not how likely it is
    try:
        found = model.generate(
            row, attention_mask=torch.ones_like(row), output_logits=True, return_dict_in_generate=True
        )
    finally:
        model.generation_config = own
    logits = torch.cat(found.logits).numpy()
    return Answer(found.sequences[0, -len(logits) :].numpy(), logits)


def torch_logits(model: Any, texts: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """The logits (tokens, vocab) float32 of a decoder-only model after each token of each text.

    Texts of a forward are padded at their end, which the tokens before it do not see.
    """
    import torch

    longest = max(map(len, texts))
    at_once = max(1, _FORWARD_BYTES // (4 * longest * model.config.vocab_size))
    for start in range(0, len(texts), at_once):
        some = texts[start : start + at_once]
        padded = [[*text, *[text[-1]] * (max(map(len, some)) - len(text))] for text in some]
        with torch.no_grad():
            logits = model(torch.tensor(padded)).logits.float().numpy()
        yield from (row[: len(text)] for row, text in zip(logits, some, strict=True))


class ExportedDecoder(Protocol):
    def logits(self, inputs: Sequence[Sequence[int]], answers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each input (a prompt, or a source) and the tokens (steps,) of its answer: the logits (steps, vocab)."""


def exported_decoder(artifact: ModelArtifact, config: SessionConfig, start: int | None) -> ExportedDecoder:
    """The graphs of an artifact; `start` is the first token that an encoder-decoder reads."""
    if artifact.manifest.cache != "slots":
        return _Plain(artifact, config, start)
    if "decoder" in artifact.manifest.graphs:
        return SourceSlots(Seq2SeqSessions.of(artifact, config), start or 0)
    return PromptSlots(InferenceSession(artifact.graph("model"), config))


class _Plain:
    """One request after the other."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig, start: int | None) -> None:
        self._decoder, self._start = open_decoder(artifact, config), start

    def logits(self, inputs: Sequence[Sequence[int]], answers: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._one(ids, answer) for ids, answer in zip(inputs, answers, strict=True)]

    def _one(self, ids: Sequence[int], answer: np.ndarray) -> np.ndarray:
        prompt, source = (ids, ()) if self._start is None else ([self._start], ids)
        logits, cache = self._decoder.prefill(prompt, source)
        found = [logits]
        for token in answer[:-1]:
            logits, cache = self._decoder.step(np.asarray([token], np.int64), cache)
            found.append(logits)
        return np.concatenate(found)


class PromptSlots:
    """A slot for each prompt."""

    def __init__(self, session: InferenceSession) -> None:
        self.session = session

    def logits(self, inputs: Sequence[Sequence[int]], answers: Sequence[np.ndarray]) -> list[np.ndarray]:
        decoder, first, lengths = self._read(inputs, max(map(len, answers)))
        return _step_together(decoder, lengths, answers, [first])

    def answers(self, inputs: Sequence[Sequence[int]], steps: int) -> list[Answer]:
        """`steps` greedy tokens after each prompt; the end-of-sequence token is one as any other."""
        decoder, first, lengths = self._read(inputs, steps)
        found, rows = [first], range(len(inputs))
        for step in range(steps - 1):
            ids = found[-1].argmax(-1)[:, None]
            found.append(decoder.read(0, ids, lengths + step, np.asarray(rows)).rows(rows))
        together = np.stack(found, 1)  # (rows, steps, vocab)
        return [Answer(row.argmax(-1), row) for row in together]

    def _read(self, inputs: Sequence[Sequence[int]], steps: int) -> tuple[CausalSlots, np.ndarray, np.ndarray]:
        """A decoder that has read each prompt, the logits (rows, vocab) after them, and their lengths (rows,)."""
        decoder = CausalSlots(self.session, len(inputs), max(map(len, inputs)) + steps)
        first = np.stack([_read_prompt(decoder, slot, prompt) for slot, prompt in enumerate(inputs)])
        return decoder, first, np.asarray([len(prompt) for prompt in inputs], np.int64)


class SourceSlots:
    """A slot for each source."""

    def __init__(self, sessions: Seq2SeqSessions, start: int) -> None:
        self._sessions, self._start = sessions, start

    def logits(self, inputs: Sequence[Sequence[int]], answers: Sequence[np.ndarray]) -> list[np.ndarray]:
        steps = max(map(len, answers))
        decoder = Seq2SeqSlots(self._sessions, len(inputs), steps, max(map(len, inputs)))
        for failure in decoder.open(dict(enumerate(inputs))).values():
            raise failure
        started = [np.concatenate([[self._start], answer]) for answer in answers]
        return _step_together(decoder, np.zeros(len(inputs), np.int64), started, [])


def _read_prompt(decoder: CausalSlots, slot: int, prompt: Sequence[int]) -> np.ndarray:
    """The logits (vocab,) after a prompt that is read into a slot chunk by chunk."""
    for start in range(0, len(prompt), _CHUNK_TOKENS):
        ids = np.asarray([prompt[start : start + _CHUNK_TOKENS]], np.int64)
        logits = decoder.read(slot, ids, np.asarray([start]), np.asarray([ids.shape[1] - 1]))
    last: np.ndarray = logits.rows([0])[0]
    return last


def _step_together(
    decoder: CausalSlots | Seq2SeqSlots, lengths: np.ndarray, fed: Sequence[np.ndarray], found: list[np.ndarray]
) -> list[np.ndarray]:
    """Feed each slot its tokens but the last one, all slots together; the logits of each, with those `found` before.

    `lengths` (rows,) are the tokens that the slots hold. A slot whose answer has ended reads zeros.
    """
    tokens = np.zeros((len(fed), max(map(len, fed)) - 1), np.int64)
    for row, own in enumerate(fed):
        tokens[row, : len(own) - 1] = own[:-1]
    rows = range(len(fed))
    found += [
        decoder.read(0, tokens[:, step : step + 1], lengths + step, np.asarray(rows)).rows(rows)
        for step in range(tokens.shape[1])
    ]
    together = np.stack(found, 1)  # (rows, steps, vocab)
    ends = [len(own) - 1 + len(found) - tokens.shape[1] for own in fed]
    return [row[:end] for row, end in zip(together, ends, strict=True)]


def fault_of_slots(model: Any, graphs: Mapping[str, Path]) -> str | None:
    """What is wrong with the slot graphs, fp32, that were traced of a model; None where nothing is.

    A trace keeps what the model did with the example. Where it does something else with other inputs, the graph is
    wrong, and the plain one may be right.
    """
    draw = np.random.default_rng(0)
    padding = model.config.pad_token_id
    known = [one for one in range(model.config.vocab_size) if one != padding]  # padding has positions of its own
    texts = [draw.choice(known, length).tolist() for length in _checked_lengths(model.config)]
    inputs, answers = [text[:-_CHECKED_STEPS] for text in texts], [text[-_CHECKED_STEPS:] for text in texts]
    start = known[0]  # not the model's own, which may be padding
    decoder: ExportedDecoder
    try:
        sessions = {role: InferenceSession(graph, SessionConfig()) for role, graph in graphs.items()}
        if "model" in sessions:
            decoder = PromptSlots(sessions["model"])
        else:
            decoder = SourceSlots(Seq2SeqSessions(**sessions), start)
        exported = decoder.logits(inputs, [np.asarray(answer) for answer in answers])
    except Exception as error:  # onnxruntime's errors have no common type
        return f"onnxruntime cannot run its graph with slots ({first_line(error)})"
    expected = np.concatenate([_read_by_torch(model, *both, start) for both in zip(inputs, answers, strict=True)])
    difference = float(np.abs(np.concatenate(exported) - expected).max()) / max(1.0, float(expected.std()))
    return (
        None if difference <= _CHECKED_DIFFERENCE else f"its graph with slots differs from PyTorch by {difference:.2g}"
    )


def _checked_lengths(config: Any) -> list[int]:
    """Of the texts to check with: beyond a sliding window that is not too long, within the model's positions."""
    positions = source_positions(config) or _LONGEST_CHECK
    longest = _CHECKED_TOKENS[0]
    beyond = (getattr(config, "sliding_window", None) or 0) + _BEYOND_WINDOW
    if longest < beyond <= _LONGEST_CHECK:
        longest = beyond
    return [min(length, positions) for length in (longest, *_CHECKED_TOKENS[1:])]


def _read_by_torch(model: Any, ids: Sequence[int], answer: Sequence[int], start: int) -> np.ndarray:
    """PyTorch's logits (steps, vocab) for each token of an answer to a prompt or a source."""
    import torch

    with torch.no_grad():
        if model.config.is_encoder_decoder:
            found = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]]))
        else:
            found = model(torch.tensor([[*ids, *answer[:-1]]]))
    logits: np.ndarray = found.logits[0, -len(answer) :].numpy()
    return logits


class Perplexity:
    """exp of the mean negative logprob of tokens, for the PyTorch model and for its export."""

    def __init__(self) -> None:
        self._losses: list[np.ndarray] = []  # (tokens, 2) float64: reference, exported

    def observe(self, reference: np.ndarray, exported: np.ndarray, tokens: np.ndarray) -> None:
        """Add tokens (n,) and the logits (n, vocab) of both sides from which they were predicted."""
        rows = np.arange(len(tokens))
        both = [-log_softmax(logits.astype(np.float64))[rows, tokens] for logits in (reference, exported)]
        self._losses.append(np.stack(both, -1))

    def read(self, model: Any, session: InferenceSession, texts: Sequence[Sequence[int]]) -> None:
        """Add texts, ids of at least two tokens each, that a decoder-only model and its slot graph read."""
        for ids, reference in zip(texts, torch_logits(model, texts) if texts else (), strict=True):
            decoder = CausalSlots(session, 1, len(ids))
            every = np.arange(len(ids))
            exported = decoder.read(0, np.asarray([ids], np.int64), np.zeros(1, np.int64), every).rows(every.tolist())
            self.observe(reference[:-1], exported[:-1], np.asarray(ids[1:]))

    def values(self) -> tuple[float, float] | None:
        """The perplexity of PyTorch and of the export; None where there were no tokens."""
        if not self._losses:
            return None
        reference, exported = np.exp(np.concatenate(self._losses).mean(0))
        return float(reference), float(exported)
