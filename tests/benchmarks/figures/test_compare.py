from dataclasses import replace

from benchmarks.figures.compare import cautions, compare
from benchmarks.figures.result import Result


def result(**figures: list[float]) -> Result:
    machine = {"cpu": "one", "commit": "a"}
    return Result("offline", "offline", "sextet bench offline", {"seed": 0}, figures, points=[], machine=machine)


def test_a_difference_beyond_the_spread_of_the_repetitions_is_told_from_noise() -> None:
    before = result(inputs_per_s=[100.0, 102.0, 98.0], p99_ms=[10.0, 30.0, 20.0])
    after = result(inputs_per_s=[120.0, 121.0, 119.0], p99_ms=[25.0, 12.0, 30.0])

    throughput, latency = compare(before, after)

    assert throughput.beyond_noise is True
    assert str(throughput) == "inputs_per_s: 100 -> 120 (+20.0%), differs"
    assert latency.beyond_noise is False


def test_repetitions_that_are_all_equal_differ_where_their_value_does() -> None:
    before, after = result(a=[1.0, 1.0], b=[0.0, 0.0]), result(a=[2.0, 2.0], b=[0.0, 0.0])

    assert [difference.beyond_noise for difference in compare(before, after)] == [True, False]


def test_one_repetition_is_too_few_to_tell() -> None:
    (difference,) = compare(result(rate_per_s=[10.0]), result(rate_per_s=[20.0]))

    assert difference.beyond_noise is None


def test_figures_that_only_one_result_has_are_left_out() -> None:
    assert compare(result(a=[1.0, 1.0]), result(b=[1.0, 1.0])) == []


def test_another_machine_or_load_is_pointed_out_and_another_commit_is_the_point() -> None:
    before = result(a=[1.0])
    after = replace(before, machine={"cpu": "two", "commit": "b"}, load={"seed": 1})

    assert cautions(before, after) == ["cpu: one | two", "load, seed: 0 | 1"]
