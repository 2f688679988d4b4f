"""A request's route inside its application, which is made once per request."""

import pytest
from starlette.requests import Request

from deployments.http.errors import MethodNotAllowedError
from deployments.http.request import Route, is_bulk


def route(path: str, prefix: str = "/text-generation", method: str = "POST") -> Route:
    return Route.of(Request({"type": "http", "method": method, "path": path, "root_path": prefix, "headers": []}))


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/text-generation", "/"),
        ("/text-generation/", "/"),
        ("/text-generation/v1/models", "/v1/models"),
        ("/text-generation/v1/models/", "/v1/models"),
    ],
)
def test_a_route_is_the_path_below_the_prefix_of_its_application(path: str, below: str) -> None:
    assert route(path) == Route("POST", below, path)


def test_an_application_at_the_root_has_no_prefix() -> None:
    assert route("/v1/models", prefix="") == Route("POST", "/v1/models", "/v1/models")


def test_a_wrong_method_is_refused_with_the_path_that_the_client_asked_for() -> None:
    asked = route("/text-generation/v1/models", method="DELETE")

    with pytest.raises(
        MethodNotAllowedError, match="DELETE is not allowed at /text-generation/v1/models; allowed: GET, "
    ) as refused:
        asked.require_method("GET, HEAD")
    assert refused.value.allow == "GET, HEAD"


@pytest.mark.parametrize(
    ("headers", "bulk"),
    [
        ({}, False),
        ({"x-sextet-class": "interactive"}, False),
        ({"x-sextet-class": "bulk"}, True),
        ({"priority": "u=7"}, True),
        ({"priority": "u=7, i"}, True),
        ({"priority": "i,u=7"}, True),
        ({"priority": "u=3"}, False),
        ({"x-sextet-class": "interactive", "priority": "u=7"}, True),
    ],
)
def test_a_request_is_bulk_where_its_key_or_the_client_itself_says_so(headers: dict[str, str], bulk: bool) -> None:
    assert is_bulk(headers) is bulk
