"""What observing costs is measured on what a replica does: every call is counted, logged and traced."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import observing
from deployments.observability import tracing
from deployments.observability.metrics import Metrics
from deployments.observability.request_log import LogFile
from tests.deployments.observability.observed import values
from tests.otlp import receiver


def test_each_call_is_counted_logged_and_traced(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, lines = exported("bert", "text-classification"), list[str]()
    alone, sampled = Metrics("alone"), Metrics("sampled")
    given = iter((alone, sampled))
    monkeypatch.setattr(observing, "BLOCKS", 2)
    monkeypatch.setattr(observing, "BLOCK", 2 * observing.TOKENS)
    monkeypatch.setattr(observing, "Metrics", lambda replica: next(given))
    monkeypatch.setattr(LogFile, "write", lambda _, line: lines.append(line))
    tracing.provider.cache_clear()
    with receiver() as collector:
        monkeypatch.setenv(tracing.VARIABLES[0], collector.url)
        found = asyncio.run(observing.observing_us(model, 1.0))
        spans = collector.spans()

    assert list(found) == ["observed_request_us", "observed_stream_us", "sampled_request_us"]
    assert all(us > 0 for us in found.values())
    requests = 2 * observing.BLOCK
    assert values(alone, "sextet_requests_total", protocol="huggingface", status="200") == [requests + 4]
    assert values(alone, "sextet_inter_token_seconds_count") == [4 * (observing.TOKENS - 1)]
    assert values(sampled, "sextet_requests_total") == values(sampled, "sextet_batch_rows_sum") == [requests]
    assert len(lines) == requests
    assert [span.name for span in spans].count("inference") == requests
