"""What a time of the day took is known from recent days, and kept in a file."""

import pytest

from deployments.scaling.daily import DAYS, DailyPattern
from pipelines.errors import ConfigurationError

DAY_S = 96_000.0  # parts of 1000 s


def recorded(*peaks: int) -> DailyPattern:
    pattern = DailyPattern(DAY_S)
    for day, peak in enumerate(peaks):
        pattern.note(day * DAY_S, peak)
        pattern.note(day * DAY_S + 500, 0)
        assert pattern.recorded == 2 * day
        pattern.note(day * DAY_S + 1000, 0)
        assert pattern.recorded == 2 * day + 1
    return pattern


def test_a_part_needs_the_median_of_its_peaks() -> None:
    pattern = recorded(3, 40, 4)
    assert pattern.needs(3 * DAY_S + 999) == 4
    assert pattern.needs(3 * DAY_S - 1) == 0
    assert pattern.needs(3 * DAY_S - 1, ahead_s=1) == 4


def test_old_days_are_forgotten() -> None:
    assert recorded(*[9] * 5, *[2] * DAYS).needs(0) == 2


def test_it_is_read_as_it_was_written() -> None:
    pattern = recorded(3, 40, 4)
    assert DailyPattern.of_text(pattern.text()).needs(100) == 4


@pytest.mark.parametrize("text", [b"", b"{}", b'{"day_s": 1, "peaks": [[1]]}', b'{"day_s": -1, "peaks": []}'])
def test_what_is_no_pattern_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(ConfigurationError, match="^no recorded pattern: [^\n]*$"):
        DailyPattern.of_text(text)
