"""The table from exceptions to statuses: every error that a client can cause has one, and only ours are 500."""

import json
import pickle

import pytest

from deployments.http.errors import Failure, MethodNotAllowedError, UnavailableError
from pipelines.errors import (
    DeadlineExceededError,
    InputTooLongError,
    InvalidInputError,
    OverloadedError,
    UnusedParametersError,
)


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (InvalidInputError("inputs is a number"), 400, "validation"),
        (UnusedParametersError(["x"]), 400, "validation"),
        (InputTooLongError("too long"), 422, "validation"),
        (DeadlineExceededError("late"), 408, "timeout"),
        (OverloadedError("full", 2.2), 429, "overloaded"),
        (UnavailableError("gone", 5.0), 503, "overloaded"),
    ],
)
def test_an_error_has_the_status_of_its_nearest_class(error: Exception, status: int, error_type: str) -> None:
    failure = Failure.of(error)

    assert (failure.status, failure.error_type) == (status, error_type)
    assert json.loads(failure.body()) == {"error": str(error), "error_type": error_type}


def test_an_overloaded_server_says_in_whole_seconds_when_to_come_back() -> None:
    assert Failure.of(OverloadedError("full", 2.2)).headers == {"retry-after": "3"}
    assert Failure.of(OverloadedError("full", 0.0)).headers == {"retry-after": "1"}


def test_a_wrong_method_is_answered_with_the_right_ones() -> None:
    assert Failure.of(MethodNotAllowedError("GET is not allowed", "POST")).headers == {"allow": "POST"}


def test_whatever_else_happens_is_internal_and_tells_the_client_nothing_of_it() -> None:
    failure = Failure.of(KeyError("a secret path"))

    assert (failure.status, failure.error_type) == (500, "internal")
    assert "secret" not in failure.error


def test_errors_survive_the_way_between_processes() -> None:
    for error in (OverloadedError("full", 2.0), MethodNotAllowedError("GET", "POST"), UnusedParametersError(["x"])):
        copied = pickle.loads(pickle.dumps(error))

        assert (str(copied), vars(copied)) == (str(error), vars(error))
