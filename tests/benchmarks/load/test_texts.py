from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load.texts import Lengths, counter, from_file, synthetic
from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import ModelArtifact


def test_texts_have_the_drawn_lengths_in_the_artifacts_own_tokens(exported: Callable[..., Path]) -> None:
    count = counter(ModelArtifact.open(exported("bert", "text-classification")))

    texts = synthetic(Lengths.parse("uniform:16-60"), 50, seed=1, count_tokens=count, longest=128)

    drawn = Lengths.parse("uniform:16-60").draw(50, seed=1, longest=128)
    assert max(abs(have - want) for have, want in zip(count(texts), drawn, strict=True)) <= 1
    assert len(set(drawn)) > 10


def test_a_lognormal_distribution_has_the_median_and_the_95th_percentile_of_its_name() -> None:
    lengths = Lengths.parse("lognormal:24,200").draw(20_000, seed=0, longest=100_000)

    assert np.median(lengths) == pytest.approx(24, rel=0.05)
    assert np.percentile(lengths, 95) == pytest.approx(200, rel=0.1)


def test_the_same_seed_gives_the_same_texts_and_nothing_is_longer_than_the_model_reads() -> None:
    words = counter(None)
    lengths = Lengths.parse("lognormal:24,200")

    texts = synthetic(lengths, 100, seed=7, count_tokens=words, longest=64)

    assert texts == synthetic(lengths, 100, seed=7, count_tokens=words, longest=64)
    assert max(words(texts)) == 64


@pytest.mark.parametrize("named", ["", "fixed", "fixed:0", "uniform:9-3", "lognormal:24", "normal:3,4", "fixed:1-2"])
def test_a_distribution_that_does_not_exist_is_refused_with_those_that_do(named: str) -> None:
    with pytest.raises(ConfigurationError, match="lognormal:MEDIAN,P95"):
        Lengths.parse(named)


def test_texts_of_a_file_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("하나\n\n two \n", encoding="utf-8")
    assert from_file(tmp_path / "texts.txt") == ["하나", "two"]

    with pytest.raises(ConfigurationError, match="cannot be read"):
        from_file(tmp_path / "absent.txt")
