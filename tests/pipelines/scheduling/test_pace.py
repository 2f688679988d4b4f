"""Pace: what batches took corrects what a cost model says of those to come."""

import pytest

from pipelines.scheduling.batching import SATURATED, Pace


def after(*batches: tuple[float, float], is_full: bool = False) -> Pace:
    """One that was told of batches of real and predicted seconds, without a fixed cost."""
    pace = Pace(measured=True)
    for real_s, predicted_s in batches:
        pace.note(real_s, predicted_s, predicted_s, is_full=is_full)
    return pace


def test_nothing_is_predicted_before_anything_is_known() -> None:
    pace = Pace(measured=False)
    assert pace.drift is None
    assert pace.until_done_s(10.0, 1.0) == 0.0

    pace.note(0.5, 1.0, 1.0, is_full=False)
    assert pace.drift == 0.5


def test_a_measured_cost_model_counts_as_it_is_until_a_batch_has_ended() -> None:
    pace = Pace(measured=True)

    assert pace.drift == 1.0
    assert pace.until_done_s(0.0, 1.0) == 0.5
    assert pace.until_done_s(1.0, 0.0) == pytest.approx(1 / (1 - SATURATED))


def test_a_measured_cost_model_still_counts_after_the_first_batches() -> None:
    drift = [after(*[(0.0, 1.0)] * n).drift or 0.0 for n in (0, 1, 10, 60)]

    assert drift == sorted(drift, reverse=True)
    assert drift[1] > 0.8
    assert drift[-1] < 0.03


@pytest.mark.parametrize("seconds", [0.2, 5.0])
def test_one_batch_among_many_decides_little(seconds: float) -> None:
    steady = after(*[(1.0, 1.0)] * 40)
    disturbed = after(*[(1.0, 1.0)] * 40, (seconds, 1.0))

    assert disturbed.until_done_s(1.0, 0.0) == pytest.approx(steady.until_done_s(1.0, 0.0), rel=0.25)


def test_batches_count_by_their_size() -> None:
    """Of a row that waited for the loop, most of the time is none of the model's."""
    assert after(*[(1.0, 1.0), (0.02, 0.002)] * 20).drift == pytest.approx(1.0, rel=0.05)


def test_another_pace_is_followed_within_some_tens_of_batches() -> None:
    assert after(*[(1.0, 1.0)] * 100, *[(3.0, 1.0)] * 60).drift == pytest.approx(3.0, rel=0.1)


def test_what_waits_goes_at_the_pace_of_batches_that_left_rows_behind() -> None:
    pace = Pace(measured=True)
    for _ in range(60):
        pace.note(2.0, 2.0, 1.0, is_full=True)  # half of each is its fixed cost
        pace.note(1.0, 1.0, 0.1, is_full=False)

    assert pace.drift == pytest.approx(1.0)
    assert pace.until_done_s(3.0, 0.0) == pytest.approx(6.0, rel=0.05)


def test_a_cost_model_that_was_fitted_anew_is_believed_as_firmly_as_the_batches_behind_it() -> None:
    pace = after(*[(3.0, 1.0)] * 40, is_full=True)

    pace.refitted()

    assert pace.drift == pytest.approx(1.0)
    assert pace.until_done_s(1.0, 0.0) == pytest.approx(1 / (1 - SATURATED))
    pace.note(3.0, 1.0, 1.0, is_full=True)
    assert pace.drift == pytest.approx(1.0, rel=0.25)
