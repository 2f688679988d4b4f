"""ElasticSession: which of its two sessions a run gets, told by two models that answer differently."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.elastic_session import ElasticSession
from pipelines.runtime.session import InferenceSession, SessionConfig


@pytest.fixture(scope="module")
def graph(exported: Callable[..., Path]) -> Path:
    return ModelArtifact.open(exported("distilbert", "text-classification")).graph("model")


@pytest.fixture(scope="module")
def other(exported: Callable[..., Path]) -> Path:
    return ModelArtifact.open(exported("roberta", "text-classification")).graph("model")


def feeds(rows: int, tokens: int) -> dict[str, np.ndarray]:
    return {"input_ids": np.full((rows, tokens), 5, np.int64), "attention_mask": np.ones((rows, tokens), np.int64)}


def test_a_run_that_is_alone_gets_the_whole_and_one_in_company_its_share(graph: Path, other: Path) -> None:
    whole, share = InferenceSession(graph, SessionConfig(threads=2)), InferenceSession(other, SessionConfig())
    session = ElasticSession(whole, share)
    short, long = feeds(1, 4), feeds(512, 60)
    alone, in_company = whole.run(short)["logits"], share.run(short)["logits"]
    assert not np.allclose(alone, in_company)

    def run_beside() -> np.ndarray:
        while not session.running:
            time.sleep(0.001)
        return session.run(short)["logits"]

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(run_beside)
        session.run(long)

    np.testing.assert_allclose(beside.result(), in_company, atol=1e-5)
    assert session.running == 0
    np.testing.assert_allclose(session.run(short)["logits"], alone, atol=1e-5)


class Slow(InferenceSession):
    """Runs everything twenty times."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return [super(Slow, self).run(feeds) for _ in range(20)][-1]


def test_rows_that_are_not_faster_on_all_threads_stay_on_a_share_of_them(graph: Path, other: Path) -> None:
    config = SessionConfig()
    slow_whole = ElasticSession(Slow(graph, config), InferenceSession(other, config))
    fast_whole = ElasticSession(InferenceSession(graph, config), Slow(other, config))
    row = feeds(1, 8)

    for session in (slow_whole, fast_whole):
        session.calibrate(lambda n_tokens: feeds(1, n_tokens), [4, 8, 16])

    assert (slow_whole.large_tokens, fast_whole.large_tokens) == (math.inf, 4)
    on_a_share = InferenceSession(other, config).run(row)["logits"]
    np.testing.assert_allclose(slow_whole.run(row)["logits"], on_a_share, atol=1e-5)
    assert not np.allclose(fast_whole.run(row)["logits"], on_a_share)


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
