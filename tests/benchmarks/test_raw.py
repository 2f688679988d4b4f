from collections.abc import Callable
from pathlib import Path

from benchmarks.raw import BATCH_SIZES, RawPipeline


def test_the_raw_pipeline_finds_a_batch_size_and_measures_it(exported: Callable[..., Path]) -> None:
    raw = RawPipeline(exported("bert", "text-classification"), threads=1, texts=["a small step", "the river flows"])

    best = raw.best_offline(duration_s=0.1)

    assert best.batch_size in BATCH_SIZES
    assert best.inputs_per_s > 0
    assert best.batch_ms["p50"] > 0


def test_a_text_is_the_context_of_a_question(exported: Callable[..., Path]) -> None:
    raw = RawPipeline(exported("distilbert", "question-answering"), threads=1, texts=["the bridge was built"])

    assert raw.run(2, duration_s=0.05, warm_up_s=0.0).inputs_per_s > 0
