"""Decoder-only models with their slots on the device: what the kernels of CUDA compute, against the CPU provider's.

The same graph runs on both: the CPU computes fp16 in fp32. Logits are compared while both read the tokens that the CPU
finds best, so that one near tie does not make all later steps incomparable.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.decoding.sampling import Sampler
from pipelines.generation.open import open_engine
from pipelines.generation.slots.causal import CausalSlots
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.device import captured_steps
from pipelines.generation.slots.device.logits import DeviceLogits
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW
from tests.tiny_checkpoints import DECODERS

WITHIN = {"fp32": 1e-4, "fp16": 0.03, "int4": 0.03}  # differences of logits, of unit scale
STEPS = 40

Slots = Callable[..., CausalSlots]


@pytest.fixture
def artifact_of(exported_for: Callable[..., Path]) -> Callable[..., ModelArtifact]:
    return lambda architecture, precision=None: ModelArtifact.open(
        exported_for(architecture, "text-generation", precision)
    )


@pytest.fixture
def on_device(device: str, artifact_of: Callable[..., ModelArtifact]) -> Slots:
    """`on_device(architecture, precision=None, cuda_graphs=True)`."""

    def make(architecture: str, precision: str | None = None, cuda_graphs: bool = True) -> CausalSlots:
        config = SessionConfig(device=device)  # type: ignore[arg-type]
        session = InferenceSession(artifact_of(architecture, precision).graph("model"), config, captures=cuda_graphs)
        return CausalSlots(session, SLOTS, WINDOW, on_device=True)

    return make


@pytest.fixture
def on_cpu(artifact_of: Callable[..., ModelArtifact]) -> Slots:
    def make(architecture: str, precision: str | None = None) -> CausalSlots:
        session = InferenceSession(artifact_of(architecture, precision).graph("model"), SessionConfig())
        return CausalSlots(session, SLOTS, WINDOW)

    return make


def alike(read: Sequence[np.ndarray], precision: str) -> None:
    """Whether the logits of the device and of the CPU provider are."""
    ours, reference = read
    assert np.isfinite(ours).all()
    unit = max(1.0, float(reference.std()))
    np.testing.assert_allclose(ours / unit, reference / unit, atol=WITHIN[precision], rtol=0)


def prompts(counts: Sequence[int]) -> np.ndarray:
    """Prompts of some lengths, padded with 0, (rows, longest)."""
    ids = np.zeros((len(counts), max(counts)), np.int64)
    for row, count in enumerate(counts):
        ids[row, :count] = np.random.default_rng(row).integers(4, 300, count)
    return ids


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("precision", [None, "int4"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_logits_are_those_of_the_cpu_provider(
    architecture: str,
    precision: str | None,
    cuda_graphs: bool,
    on_device: Slots,
    on_cpu: Slots,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts of different lengths in one read, a second chunk of one, and steps of rows at different lengths."""
    monkeypatch.setattr(captured_steps, "_SHORTEST", 16)  # so that a sequence outgrows several shapes
    ours, reference = on_device(architecture, precision, cuda_graphs), on_cpu(architecture, precision)
    named = precision or ("fp32" if device == "cpu" else "fp16")
    counts = np.asarray([5, 2, 9, 7])
    ids = prompts(counts.tolist())
    at = np.arange(4) * 9 + counts - 1
    read = [one.read(0, ids, np.zeros(4, np.int64), at, counts).rows(range(4)) for one in (ours, reference)]
    alike(read, named)
    more = prompts([6])
    read = [one.read(1, more, counts[1:2], np.asarray([5])).rows([0]) for one in (ours, reference)]
    alike(read, named)
    lengths = counts + np.asarray([0, 6, 0, 0])
    tokens = np.asarray([20, 21, 22, 23])
    for step in range(STEPS):
        rows = (4, 2, 1)[step % 3]  # sequences come and go
        read = [
            one.read(0, tokens[:rows, None], lengths[:rows], np.arange(rows)).rows(range(rows))
            for one in (ours, reference)
        ]
        alike(read, named)
        lengths[:rows] += 1
        tokens[:rows] = read[1].argmax(axis=1)


def test_the_best_tokens_are_those_of_all_logits(on_device: Slots) -> None:
    """Of equal logits the smaller token comes first, as in numpy's argmax; fp16 has many equal ones."""
    model = on_device("llama")
    logits = model.read(0, prompts([9, 9]), np.zeros(2, np.int64), np.arange(18), np.asarray([9, 9]))
    assert isinstance(logits, DeviceLogits)
    every = list(range(18))
    whole, temperatures = logits.rows(every), [0.5 + row / 9 for row in every]
    order = np.argsort(-whole, axis=1, kind="stable")
    for count in (1, 3, 65, 257, model.vocab):
        best = logits.best(every, count, temperatures)
        np.testing.assert_array_equal(best.tokens, order[:, :count])
        np.testing.assert_array_equal(best.scores, np.take_along_axis(whole, order[:, :count], 1))
        np.testing.assert_allclose(best.total, log_sum(whole), rtol=1e-5)
        np.testing.assert_allclose(best.tempered, log_sum(whole / np.asarray(temperatures)[:, None]), rtol=1e-5)
    np.testing.assert_array_equal(logits.rows([3, 1]), whole[[3, 1]])


def test_tokens_are_drawn_on_the_device_as_by_the_host(on_device: Slots) -> None:
    model = on_device("llama")
    logits = model.read(0, prompts([9, 9]), np.zeros(2, np.int64), np.arange(18), np.asarray([9, 9]))
    assert isinstance(logits, DeviceLogits)
    whole, decided = logits.rows(range(18)), 0
    for seed in range(50):
        temperature = (0.5, 1.0, 1.5)[seed % 3]
        samplers = [Sampler(seed, row) for row in range(18)]
        drawn = logits.draw(range(18), [temperature] * 18, [one.share for one in samplers])
        for row, (sampler, token) in enumerate(zip(samplers, drawn, strict=True)):
            decided += token is not None
            assert token in (None, sampler.draw(whole[row] / np.float32(temperature)))
    assert decided > 0.95 * 50 * 18


def log_sum(logits: np.ndarray) -> np.ndarray:
    summed: np.ndarray = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    return summed


def test_what_a_slot_holds_is_the_same_in_another_slot_and_after_a_pause(on_device: Slots) -> None:
    model = on_device("qwen2")
    counts = np.asarray([5, 9])
    model.read(0, prompts(counts.tolist()), np.zeros(2, np.int64), np.asarray([4, 17]), counts)
    kept = [model.save(slot, int(count)) for slot, count in enumerate(counts)]
    model.copy([0, 1], [1, 0], 9)  # they change places
    model.restore(3, kept[1])
    for slot, expected in ((1, kept[0]), (0, kept[1]), (3, kept[1])):
        for name, values in model.save(slot, next(iter(expected.values())).shape[1]).items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_served_engine_captures_its_steps_and_says_nothing(
    device: str, artifact_of: Callable[..., ModelArtifact], caplog: pytest.LogCaptureFixture
) -> None:
    config = SessionConfig(device=device)  # type: ignore[arg-type]
    engine = open_engine(artifact_of("llama"), config, SlotsConfig(SLOTS, WINDOW, prefill_chunk_tokens=32))
    assert isinstance(engine, SlotEngine)
    model = engine._model
    assert isinstance(model, CausalSlots)
    for _ in range(3):  # in another decode thread each time
        engine.generate(DecodeRequest((5, 6, 7), GenerationConfig(max_new_tokens=9).for_prompt(3, WINDOW)))
    assert (model._captured is not None and model._captured.works) == (device == "cuda")
    assert not caplog.records


def test_the_same_seed_draws_the_same_tokens(on_device: Slots) -> None:
    """Alone, in shapes that are captured, and after other requests."""
    engine = SlotEngine(on_device("llama"), prefill_chunk_tokens=32)
    config = GenerationConfig(max_new_tokens=20, do_sample=True, top_k=20).for_prompt(3, WINDOW)
    request = DecodeRequest((5, 6, 7), config, seed=11)
    first = engine.generate(request)
    engine.generate_all([DecodeRequest((8 + n, 9), config, seed=n) for n in range(SLOTS)])
    assert engine.generate(request) == first
