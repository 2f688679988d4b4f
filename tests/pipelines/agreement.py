"""What "the same answer" means between two engines: all but the last digits of a score."""

from typing import Any

import pytest

TOLERANCE = 1e-4  # of a score, in fp32
_TIE = 1e-6  # scores that two engines may put in either order


def assert_same(ours: Any, theirs: Any) -> None:
    """Same keys in the same order, same values, scores within 1e-4; and ours can become JSON as it is."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert isinstance(ours, list)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, str | int):
        assert type(ours) is type(theirs)
        assert ours == theirs
    else:
        assert type(ours) is float
        assert ours == pytest.approx(float(theirs), abs=TOLERANCE)


def assert_same_ranking(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """As `assert_same` for a list by score, but entries of equal scores may have changed places, or the last place."""
    assert [list(one) for one in ours] == [list(one) for one in theirs]
    assert_same([one["score"] for one in ours], [one["score"] for one in theirs])
    for ranked, reference in ((ours, theirs), (theirs, ours)):
        for rank, entry in enumerate(ranked):
            if _unscored(entry) != _unscored(reference[rank]):
                tied = [other for other in reference if abs(other["score"] - entry["score"]) <= _TIE]
                last = abs(reference[-1]["score"] - entry["score"]) <= _TIE
                assert last or _unscored(entry) in map(_unscored, tied), (rank, entry, reference)


def _unscored(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "score"}
