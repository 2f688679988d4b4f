"""Traces: named distributions, files of arrivals, and the log of a running cluster."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.observability.request_log import RequestLog
from pipelines.errors import ConfigurationError
from planning.bounds import MAX_REQUESTS
from planning.traces.trace import Sizes, Trace, named
from planning.traces.trace_files import from_file

SIZES = Sizes(lambda count, seed: np.full(count, 7))
TASK = "a-task"


def read(path: Path, longest: int = 512) -> Trace:
    return from_file(path, SIZES, 0, task=TASK, longest=longest)


def drawn(form: str, hours: float | None = None, seed: int = 0) -> Trace:
    found = named(form, hours, SIZES, seed)
    assert found is not None
    return found


def written(tmp_path: Path, name: str, *lines: str) -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("form", "hours", "part", "rate"),
    [
        ("constant:20", 1.0, slice(0, 10), 20.0),
        ("day:5-40", None, slice(40, 41), 40.0),  # of 60 parts, the one at 16 o'clock
        ("day:5-40", None, slice(10, 11), 5.0),
        ("burst:5-40", 2.0, slice(29, 31), 40.0),
        ("burst:5-40", 2.0, slice(0, 26), 5.0),
    ],
)
def test_a_named_distribution_has_the_rates_that_it_names(
    form: str, hours: float | None, part: slice, rate: float
) -> None:
    trace = drawn(form, hours)
    assert trace.rates(60)[part].mean() == pytest.approx(rate, rel=0.06)
    assert (np.diff(trace.arrivals_s) >= 0).all()
    assert 0 <= trace.arrivals_s[0] <= trace.arrivals_s[-1] <= trace.duration_s


def test_arrivals_are_those_of_a_poisson_process() -> None:
    gaps = np.diff(drawn("constant:50", 1.0).arrivals_s)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert (gaps > 3 * gaps.mean()).mean() == pytest.approx(np.exp(-3), rel=0.1)


def test_a_trace_is_thinned_and_multiplied_with_its_shape() -> None:
    trace = drawn("burst:5-40", 1.0)
    for share in (0.25, 1.0, 2.5):
        scaled = trace.thinned(3, share)
        assert len(scaled) == pytest.approx(share * len(trace), rel=0.05)
        assert scaled.rates(30)[14:16].mean() == pytest.approx(40 * share, rel=0.1)
        assert (np.diff(scaled.arrivals_s) >= 0).all()


@pytest.mark.parametrize(
    "form", ["constant:", "constant:x", "constant:1-2", "day:3", "day:1-2-3", "burst:-1-2", "day:1-1e9"]
)
def test_a_distribution_with_other_numbers_is_refused_in_one_line(form: str) -> None:
    with pytest.raises(ConfigurationError, match="--trace is .*allowed: constant:RATE") as error:
        named(form, 1.0, SIZES, 0)
    assert "\n" not in str(error.value)


def test_more_requests_than_are_allowed_are_refused_before_they_are_drawn() -> None:
    with pytest.raises(ConfigurationError, match=f"allowed: 0 to {MAX_REQUESTS:,}"):
        named("constant:1000000", 24.0, SIZES, 0)


def test_what_is_no_distribution_is_left_to_others() -> None:
    assert named("requests.csv", None, SIZES, 0) is None


# --- a CSV ---


def test_a_csv_has_times_and_any_of_the_sizes(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.csv", "time,tokens,rows,deadline_s,bulk", "105.5,30,2,1.5,0", "100,12,1,20,1", "101,500,1,2,0"
    )
    trace = read(path)
    assert trace.arrivals_s.tolist() == [0.0, 1.0, 5.5]
    assert trace.tokens.tolist() == [12, 500, 30]
    assert trace.rows.tolist() == [1, 1, 2]
    assert trace.deadlines_s.tolist() == [20, 2, 1.5]
    assert trace.bulk.tolist() == [True, False, False]
    assert trace.written.tolist() == [0, 0, 0]


def test_a_csv_of_times_alone_gets_drawn_sizes_and_dates_say_the_time_of_day(tmp_path: Path) -> None:
    trace = read(written(tmp_path, "a.csv", "time", "2026-03-01T06:00:00+00:00", "2026-03-01T08:00:01+01:00"))
    assert trace.arrivals_s.tolist() == [0.0, 3601.0]
    assert trace.tokens.tolist() == [7, 7]
    assert trace.day_at_s == 6 * 3600
    assert np.isinf(trace.deadlines_s).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["tokens", "1"], "a.csv:1: the header lacks `time`"),
        (["time,token", "1,2"], r"a.csv:1: no column is called 'token' \(did you mean 'tokens'\?\)"),
        (["time", "1", "soon"], "a.csv:3: time is 'soon'; allowed: seconds, or a time of ISO 8601"),
        (["time", "inf"], "a.csv:2: time is 'inf'"),
        (["time,tokens", "1,0"], "a.csv:2: tokens is '0'; allowed: 1 to 1,000,000"),
        (["time,tokens", "1,2.5"], "a.csv:2: tokens is '2.5'"),
        (["time,tokens", "1,nan"], "a.csv:2: tokens is 'nan'"),
        (["time,tokens", "1"], "a.csv:2: tokens is null"),
        (["time,rows", "1,1000000"], "a.csv:2: rows is '1000000'; allowed: 1 to 65,536"),
        (["time,bulk", "1,yes"], "a.csv:2: bulk is 'yes'; allowed: 0 to 1"),
        (["time"], "a.csv has no request"),
        (["time", "0", "1e9"], "spans 11,574 days; allowed: at most 31"),
    ],
)
def test_a_bad_csv_is_refused_by_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        read(written(tmp_path, "a.csv", *lines))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.csv", "a.parquet", "folder.csv"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match="--trace"):
        read(tmp_path / name)


# --- a request log ---


def line(at_s: float, **changed: Any) -> str:
    entry = {
        "time": datetime.fromtimestamp(1_700_000_000 + at_s, UTC).isoformat(),
        "task": TASK,
        "status": 200,
        "read_tokens": 40,
        "written_tokens": 0,
        "queue_s": 0.1,
        "inference_s": 0.3,
        "total_s": 0.5,
    }
    return json.dumps(entry | changed)


def test_a_log_says_when_requests_arrived_how_large_they_were_and_what_they_cost_beside_the_model(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "a.jsonl", line(10), line(9, total_s=4.5, queue_s=4.1), "", line(12, read_tokens=1100))
    trace = read(path, longest=512)
    assert trace.arrivals_s.tolist() == pytest.approx([0.0, 5.0, 7.0], abs=1e-3)
    assert (trace.tokens.tolist(), trace.rows.tolist()) == ([40, 40, 367], [1, 1, 3])
    assert trace.overhead_s == pytest.approx(0.1)
    assert trace.day_at_s == pytest.approx((1_700_000_000 + 4.5) % 86_400)


def test_refused_requests_of_a_log_count_as_large_as_others_and_malformed_ones_do_not_count(tmp_path: Path) -> None:
    refused = {"status": 429, "read_tokens": 0, "total_s": 0.0}
    path = written(
        tmp_path, "a.jsonl", line(1), line(2, **refused), line(3, status=422, read_tokens=0), line(4, task="another")
    )
    trace = read(path)
    assert len(trace) == 2
    assert trace.tokens.tolist() == [40, 40]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "a.jsonl:1: no line of a request log"),
        (["[]"], "a.jsonl:1: no line of a request log"),
        ([line(1), '{"task": "a-task"}'], "a.jsonl:2: no line of a request log"),
        ([line(1, total_s="long")], "a.jsonl:1: no line of a request log"),
        ([line(1, task="another")], "a.jsonl has no request of a-task; it has: another"),
        ([""], "a.jsonl has no request of a-task; it has: none"),
    ],
)
def test_a_bad_log_is_refused_by_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(written(tmp_path, "a.jsonl", *lines))


def test_the_log_has_what_a_trace_reads() -> None:
    """The keys of a line, from the source of what writes it."""
    assert RequestLog.__module__ == "deployments.observability.request_log"
    named = json.loads(line(0)).keys()
    source = Path(RequestLog._line.__code__.co_filename).read_text(encoding="utf-8")
    assert all(f'"{key}"' in source for key in named)
