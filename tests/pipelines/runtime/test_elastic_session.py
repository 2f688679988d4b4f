"""ElasticSession: which of its two sessions a run gets, told by two models that answer differently."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import LONGEST, PROBE, SOON, TRIAL, ElasticSession, InferenceSession
from pipelines.runtime.session_config import SessionConfig


@pytest.fixture(scope="module")
def graph(exported: Callable[..., Path]) -> Path:
    return ModelArtifact.open(exported("distilbert", "text-classification")).graph("model")


@pytest.fixture(scope="module")
def other(exported: Callable[..., Path]) -> Path:
    return ModelArtifact.open(exported("roberta", "text-classification")).graph("model")


def feeds(rows: int, tokens: int) -> dict[str, np.ndarray]:
    return {"input_ids": np.full((rows, tokens), 5, np.int64), "attention_mask": np.ones((rows, tokens), np.int64)}


class Paced(InferenceSession):
    """Runs everything `times` times, and `cold_times` times after a run of another session, which `last` names."""

    times = 1
    cold_times = 0
    last: ClassVar[list["Paced"]] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        times = self.cold_times if self.cold_times and self.last[-1:] != [self] else self.times
        self.last[:] = [self]
        return [super(Paced, self).run(feeds) for _ in range(times)][-1]


class Pair:
    """An ElasticSession of two models, and which of them answers."""

    def __init__(self, graph: Path, other: Path) -> None:
        self.whole, self.share = Paced(graph, SessionConfig()), Paced(other, SessionConfig())
        self.session = ElasticSession(self.whole, self.share)

    def answers(self, row: dict[str, np.ndarray], runs: int) -> list[str]:
        """Which session answered each of the runs."""
        expected = InferenceSession.run(self.whole, row)["logits"]
        return ["whole" if np.allclose(self.session.run(row)["logits"], expected) else "share" for _ in range(runs)]


def test_runs_in_company_get_their_share(graph: Path, other: Path) -> None:
    pair = Pair(graph, other)
    pair.share.times = 20  # so that a lone run gets all threads
    short, long = feeds(1, 4), feeds(512, 60)
    alone, in_company = pair.whole.run(short)["logits"], pair.share.run(short)["logits"]
    assert not np.allclose(alone, in_company)

    def run_beside() -> np.ndarray:
        while not pair.session.running:
            time.sleep(0.001)
        return pair.session.run(short)["logits"]

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(run_beside)
        pair.session.run(long)

    np.testing.assert_allclose(beside.result(), in_company, atol=1e-5)
    assert pair.session.running == 0
    np.testing.assert_allclose(pair.session.run(short)["logits"], alone, atol=1e-5)


def test_both_sessions_are_tried_and_the_faster_one_gets_the_lone_runs_of_its_size(graph: Path, other: Path) -> None:
    row, longer = feeds(1, 8), feeds(1, 32)
    for slow, fast in (("whole", "share"), ("share", "whole")):
        pair = Pair(graph, other)
        getattr(pair, slow).times = 20

        first = pair.answers(row, 2 * TRIAL)
        assert first[:TRIAL] == ["whole"] * TRIAL
        assert first[TRIAL : 2 * TRIAL - 1] == ["share"] * (TRIAL - 1)
        assert pair.answers(row, PROBE // 2).count(fast) >= PROBE // 2 - 2 * TRIAL
        assert slow in pair.answers(longer, 2 * TRIAL)


def test_a_session_whose_weights_have_left_the_caches_is_tried_for_longer_than_that_takes(
    graph: Path, other: Path
) -> None:
    row = feeds(1, 8)
    pair = Pair(graph, other)
    pair.whole.times, pair.share.times = 400, 20  # beside busy processes, that are gone now
    pair.answers(row, 2 * TRIAL)

    pair.whole.times, pair.whole.cold_times = 1, 400

    assert "whole" in pair.answers(row, LONGEST)[-SOON:]


def test_a_session_that_loses_is_tried_less_and_less(graph: Path, other: Path) -> None:
    row = feeds(1, 8)
    pair = Pair(graph, other)
    pair.whole.times, pair.share.times = 10, 100

    answers = pair.answers(row, 2 * LONGEST)

    assert answers.count("share") > TRIAL - 1
    assert answers[LONGEST:].count("share") <= LONGEST // 20


def test_a_session_that_was_slow_while_the_machine_was_busy_is_tried_again(graph: Path, other: Path) -> None:
    row = feeds(1, 8)
    for slow in ("whole", "share"):
        pair = Pair(graph, other)
        getattr(pair, slow).times = 20
        pair.answers(row, PROBE)

        pair.whole.times, pair.share.times = (1, 20) if slow == "whole" else (20, 1)
        answers = pair.answers(row, 3 * PROBE)

        assert slow in answers[: PROBE + 1]
        assert answers[-PROBE // 2 :].count(slow) >= PROBE // 2 - TRIAL


def test_the_slower_session_is_tried_soon_after_the_neighbours_have_gone(graph: Path, other: Path) -> None:
    row = feeds(1, 8)
    pair = Pair(graph, other)
    pair.whole.times, pair.share.times = 1000, 400  # beside busy processes
    pair.answers(row, PROBE // 2)

    pair.whole.times, pair.share.times = 1, 20

    assert pair.answers(row, PROBE // 2)[-SOON:].count("whole") >= SOON - 1


def test_a_run_that_was_joined_by_another_is_not_compared(graph: Path, other: Path) -> None:
    pair = Pair(graph, other)
    row = feeds(1, 8)
    entered, joined = threading.Event(), threading.Event()

    def held(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        entered.set()
        joined.wait(20)
        return InferenceSession.run(pair.whole, feeds)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(pair.whole, "run", held)
        alone = pool.submit(pair.session.run, row)
        entered.wait(20)
        pair.session.run(row)
        joined.set()
        alone.result()

    assert pair.answers(row, 2 * TRIAL).count("whole") == TRIAL


def test_a_run_that_fails_leaves_no_trace(graph: Path) -> None:
    session = ElasticSession.open(graph, SessionConfig(threads=2, concurrency=2))

    with pytest.raises(Exception, match="input_ids"):
        session.run({"attention_mask": np.ones((1, 4), np.int64)})

    assert session.running == 0


@pytest.mark.parametrize(
    ("threads", "concurrency", "sessions"), [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 2), (4, 2, 2), (2, 4, 2)]
)
def test_the_weights_are_loaded_twice_only_where_threads_are_shared(
    graph: Path, threads: int, concurrency: int, sessions: int
) -> None:
    session = ElasticSession.open(graph, SessionConfig(threads=threads, concurrency=concurrency))

    assert len({id(session._whole), id(session._share)}) == sessions
