from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.bare import ON_GPU, BareRuntime, Way
from benchmarks.raw import BATCH_SIZES

TEXTS = ["a small step", "the river flows"]


def test_the_best_of_the_bare_runtime_is_searched_over_ways_and_batch_sizes(exported: Callable[..., Path]) -> None:
    bare = BareRuntime(exported("bert", "text-classification"), TEXTS, threads=2)

    best = bare.best(duration_s=0.05)

    assert best.way in (Way(), Way(workers=2), Way(2, True), Way(2, False))
    assert best.batch_size in BATCH_SIZES
    assert best.rows_per_s > 0
    assert best.row_cpu_s > 0


def test_alone_means_one_row_in_one_run(exported: Callable[..., Path]) -> None:
    best = BareRuntime(exported("bert", "text-classification"), TEXTS, threads=2).best_alone(duration_s=0.05)

    assert (best.batch_size, best.way.workers) == (1, 1)


def test_a_batch_may_be_larger_than_the_texts(exported: Callable[..., Path]) -> None:
    bare = BareRuntime(exported("distilbert", "text-classification"), TEXTS, threads=1)

    assert bare.run(Way(), 8, duration_s=0.02).rows_per_s > 0


@pytest.mark.parametrize("way", ON_GPU, ids=str)
def test_the_ways_of_a_gpu_run_on_every_device(way: Way, exported: Callable[..., Path]) -> None:
    bare = BareRuntime(exported("bert", "text-classification"), TEXTS, threads=1, device="cpu", batch_sizes=(2,))

    assert bare.run(way, 2, duration_s=0.02).rows_per_s > 0
