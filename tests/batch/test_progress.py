"""What a run says of itself: rows, rate, share and time left."""

import pytest

from batch.progress import Progress, duration
from batch.scorer import Finished


def part(source: int, number: int, share: float, *, is_new: bool = True, n_bad: int = 0) -> Finished:
    began_at = 1000.0 + number
    return Finished(source, number, 100, share, False, is_new, n_bad=n_bad, began_at=began_at, ended_at=began_at + 1.5)


def test_the_rate_is_that_of_this_run_and_the_share_that_of_all_inputs() -> None:
    progress = Progress(2, lambda line: None)
    progress.note(part(0, 0, 0.5, is_new=False, n_bad=3))
    progress.note(part(0, 1, 1.0))
    progress.note(part(1, 2, 0.5, n_bad=1))
    assert (progress.rows, progress.bad_rows, progress.share) == (300, 4, 0.75)
    assert progress.seconds == pytest.approx(2.5)  # from the start of the first new part to the end of the last
    assert progress.rows_per_s == pytest.approx(80)
    assert progress.line().startswith("300 rows, 4 bad, ")
    assert ", 75%" in progress.line()


def test_progress_is_said_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("batch.progress.time.monotonic", lambda: now[0])
    said: list[str] = []
    progress = Progress(1, said.append)
    for number in range(5):
        now[0] += 2.0
        progress.note(part(0, number, (number + 1) / 10))
    assert said == ["300 rows, 50 rows/s, 30%, 14 s left"]  # at 106 s: 200 rows in the 4 s since the first


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.4, "8 s"), (130, "2 min 10 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")]
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
