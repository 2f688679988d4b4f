"""Greedy: the same tokens through a PyTorch generator and through its exported graphs, step by step, with their caches.

PyTorch chooses every token (the most likely one); the graphs are fed these tokens, so that one difference does not
make all later steps incomparable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.seq2seq import Seq2SeqSessions, Seq2SeqSlots
from pipelines.runtime.session import InferenceSession

_CHUNK_TOKENS = 16  # so that most prompts take several


@dataclass(frozen=True)
class Step:
    """Logits after one more token, both (rows, vocabulary) float32; `alive` (rows,) bool: the row has not ended yet."""

    reference: np.ndarray
    exported: np.ndarray
    alive: np.ndarray


def decoder_steps(
    model: Any, session: InferenceSession, prompts: Sequence[Sequence[int]], *, pad: int, steps: int
) -> Iterator[Step]:
    """Prefill a batch of prompts of different lengths, padded on the left, then decode `steps` tokens.

    A slot graph reads them as it does when it serves: in chunks, each in a slot of its own, and then side by side.
    """
    input_ids, mask = _padded(prompts, pad, left=True)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    reference = _TorchDecoder(model)
    in_slots = "seqlens_k" in session.input_names
    exported = _SlotDecoder(session, prompts, steps) if in_slots else _GraphDecoder(session)
    yield from _follow(
        reference, exported, {"input_ids": input_ids, "mask": mask, "positions": positions}, model, steps
    )


def encoder_decoder_steps(
    model: Any,
    encoder: InferenceSession,
    decoder: InferenceSession,
    sources: Sequence[Sequence[int]],
    *,
    pad: int,
    forced: Sequence[int],
    steps: int,
    outside: int | None = None,
    unknown: int = 0,
) -> Iterator[Step]:
    """Encode a batch of sources, then decode: the tokens `forced` first (as language codes are), then `steps` more.

    Slot graphs encode each by itself, as they do when they serve. The graph reads ids from `outside` on as `unknown`;
    PyTorch has to be told so.
    """
    input_ids, mask = _padded(sources, pad, left=False)
    known_ids = input_ids if outside is None else np.where(input_ids < outside, input_ids, unknown)
    reference = _TorchSeq2Seq(model, known_ids, mask)
    exported: _SlotSeq2Seq | _GraphSeq2Seq
    if "seqlens_k" in decoder.input_names:
        exported = _SlotSeq2Seq(Seq2SeqSessions(encoder, decoder), sources, steps + len(forced))
    else:
        exported = _GraphSeq2Seq(encoder, decoder, input_ids, mask)
    start = np.full((len(sources), 1), model.generation_config.decoder_start_token_id, dtype=np.int64)
    yield from _follow(reference, exported, {"input_ids": start}, model, steps + len(forced), forced)


def _follow(
    reference: Any, exported: Any, first: dict[str, np.ndarray], model: Any, steps: int, forced: Sequence[int] = ()
) -> Iterator[Step]:
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    alive = np.ones(len(first["input_ids"]), dtype=bool)
    feeds = first
    for step in range(steps):
        logits = reference(feeds)
        yield Step(logits, exported(feeds), alive)
        tokens = np.full(len(alive), forced[step]) if step < len(forced) else logits.argmax(-1)
        alive = alive & ~np.isin(tokens, ends)
        if not alive.any():
            return
        feeds = {"input_ids": tokens[:, None].astype(np.int64)}
        if "mask" in first:
            first["mask"] = feeds["mask"] = np.pad(first["mask"], ((0, 0), (0, 1)), constant_values=1)
            first["positions"] = feeds["positions"] = first["positions"][:, -1:] + 1


class _TorchDecoder:
    def __init__(self, model: Any) -> None:
        self.model, self.past = model, None

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        import torch

        with torch.no_grad():
            output = self.model(
                input_ids=torch.from_numpy(feeds["input_ids"]),
                attention_mask=torch.from_numpy(feeds["mask"]),
                position_ids=torch.from_numpy(feeds["positions"]),
                past_key_values=self.past,
                use_cache=True,
            )
        self.past = output.past_key_values
        logits: np.ndarray = output.logits[:, -1].numpy()
        return logits


class _GraphDecoder:
    def __init__(self, session: InferenceSession) -> None:
        self.session = session
        self.past: dict[str, np.ndarray] = {}

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        known = {
            "input_ids": feeds["input_ids"],
            "attention_mask": feeds["mask"],
            "position_ids": feeds["positions"],
            **(self.past or _empty_past(self.session, len(feeds["input_ids"]))),
        }
        outputs = self.session.run({name: known[name] for name in self.session.input_names})
        self.past = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        logits: np.ndarray = outputs["logits"][:, -1]
        return logits


class _SlotDecoder:
    def __init__(self, session: InferenceSession, prompts: Sequence[Sequence[int]], steps: int) -> None:
        self.lengths = np.zeros(len(prompts), np.int64)
        self.prompts = prompts
        self.decoder = CausalSlots(session, len(prompts), max(map(len, prompts)) + steps)

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        ids = feeds["input_ids"]
        if self.lengths.any():
            logits = self.decoder.read(0, ids, self.lengths, np.zeros(1, np.int64))[:, 0]
            self.lengths += 1
            return logits
        return np.stack([self._prefill(slot, prompt) for slot, prompt in enumerate(self.prompts)])

    def _prefill(self, slot: int, prompt: Sequence[int]) -> np.ndarray:
        for start in range(0, len(prompt), _CHUNK_TOKENS):
            ids = np.asarray([prompt[start : start + _CHUNK_TOKENS]], np.int64)
            at = self.lengths[slot : slot + 1]
            logits = self.decoder.read(slot, ids, at, np.asarray([ids.shape[1] - 1]))
            at += ids.shape[1]
        last: np.ndarray = logits[0, 0]
        return last


class _SlotSeq2Seq:
    def __init__(self, sessions: Seq2SeqSessions, sources: Sequence[Sequence[int]], steps: int) -> None:
        self.lengths = np.zeros(len(sources), np.int64)
        self.decoder = Seq2SeqSlots(sessions, len(sources), steps, max(map(len, sources)))
        for failure in self.decoder.open(dict(enumerate(sources))).values():
            raise failure

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        logits = self.decoder.read(0, feeds["input_ids"], self.lengths, np.zeros(1, np.int64))[:, 0]
        self.lengths += 1
        return logits


class _TorchSeq2Seq:
    def __init__(self, model: Any, input_ids: np.ndarray, mask: np.ndarray) -> None:
        import torch

        self.model, self.past, self.mask = model, None, torch.from_numpy(mask)
        with torch.no_grad():
            self.encoded = model.get_encoder()(input_ids=torch.from_numpy(input_ids), attention_mask=self.mask)

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        import torch

        with torch.no_grad():
            output = self.model(
                encoder_outputs=self.encoded,
                attention_mask=self.mask,
                decoder_input_ids=torch.from_numpy(feeds["input_ids"]),
                past_key_values=self.past,
                use_cache=True,
            )
        self.past = output.past_key_values
        logits: np.ndarray = output.logits[:, -1].numpy()
        return logits


class _GraphSeq2Seq:
    def __init__(
        self, encoder: InferenceSession, decoder: InferenceSession, input_ids: np.ndarray, mask: np.ndarray
    ) -> None:
        self.session, self.mask = decoder, mask
        self.hidden = encoder.run({"input_ids": input_ids, "attention_mask": mask})["last_hidden_state"]
        self.past: dict[str, np.ndarray] = {}

    def __call__(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        known = {
            "input_ids": feeds["input_ids"],
            "encoder_hidden_states": self.hidden,
            "encoder_attention_mask": self.mask,
            "use_cache_branch": np.array([bool(self.past)]),
            **(self.past or _empty_past(self.session, len(feeds["input_ids"]))),
        }
        outputs = self.session.run({name: known[name] for name in self.session.input_names})
        for name, value in outputs.items():
            # With a cache, the graph repeats nothing of the encoder's keys and values: the first step's stay.
            if name.startswith("present") and not (self.past and ".encoder." in name):
                known[name.replace("present", "past_key_values")] = value
        self.past = {name: value for name, value in known.items() if name.startswith("past_key_values")}
        logits: np.ndarray = outputs["logits"][:, -1]
        return logits


def _empty_past(session: InferenceSession, rows: int) -> dict[str, np.ndarray]:
    """A cache of no tokens: (rows, heads, 0, width of a head) for every layer's keys and values."""
    return {
        name: np.zeros((rows, int(shape[1] or 0), 0, int(shape[3] or 0)), dtype=session.input_types[name])
        for name, shape in session.input_shapes.items()
        if name.startswith("past_key_values")
    }


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask, both (rows, longest) int64."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[index, where], mask[index, where] = row, 1
    return ids, mask
