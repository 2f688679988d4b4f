"""Schema: types are the schema, and a value that does not fit is named with its place and with what is allowed."""

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from pipelines.errors import (
    ConfigurationError,
    InputTooLongError,
    InvalidInputError,
    UnknownKeyError,
    UnusedParametersError,
)
from pipelines.schema import Body, OneOrMore, Parameters, Text, components, convert, decode, encode, parse, read_json


class Example(Parameters, frozen=True):
    top_k: Annotated[int, Meta(ge=1, le=100)] | None = None
    temperature: Annotated[float, Meta(gt=0, le=2)] = 1.0
    stop: OneOrMore[str] = ()
    kind: Literal["simple", "first"] = "simple"
    flag: bool = False
    early: bool | Literal["never"] = False
    extra: Mapping[str, Any] | None = None
    words: OneOrMore[OneOrMore[int]] | None = None

    def __post_init__(self) -> None:
        if self.flag and self.top_k == 7:
            raise InvalidInputError("is 7; allowed with flag: others", ("top_k",))


class Pair(Body, frozen=True):
    text: Text
    text_pair: str | None = None


class Request(Body, frozen=True):
    inputs: Text | Pair | Annotated[list[Text | Pair], Meta(min_length=1, max_length=5)]
    parameters: Example | None = None


def test_none_and_absence_both_mean_the_default() -> None:
    assert Example.from_mapping({"top_k": None, "stop": None, "temperature": None}) == Example()
    assert decode(b'{"inputs": "a", "parameters": {"temperature": null}}', Request).parameters == Example()


def test_values_take_the_annotated_type() -> None:
    given: dict[str, Any] = {"top_k": 3, "temperature": 2, "stop": ["a", "b"], "kind": "first"}
    given |= {"flag": True, "early": True, "extra": {"a": 1}}

    assert Example.from_mapping(given) == Example(3, 2.0, ("a", "b"), "first", True, True, {"a": 1})


def test_one_element_is_a_list_of_one_where_the_type_says_so() -> None:
    assert Example.from_mapping({"stop": "a"}).stop == ("a",)
    assert Example.from_mapping({"words": [1, [2, 3]]}).words == ((1,), (2, 3))
    assert decode(b'{"inputs": "a", "parameters": {"stop": "b"}}', Request).parameters == Example(stop=("b",))


def test_unknown_names_are_worded_as_transformers_words_them() -> None:
    with pytest.raises(UnusedParametersError) as caught:
        Example.from_mapping({"top_k": 1, "x": 1, "y": 2})

    assert str(caught.value) == "The following `model_kwargs` are not used by the model: ['x', 'y']"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": "3"}, "parameters.top_k is '3'; allowed: an integer from 1 to 100"),
        ({"top_k": True}, "parameters.top_k is true; allowed: an integer"),
        ({"top_k": 101}, "parameters.top_k is 101; allowed: 1 to 100"),
        ({"top_k": 3.0}, "parameters.top_k is 3.0; allowed: an integer"),
        ({"temperature": math.nan}, "parameters.temperature is nan; allowed: above 0 and at most 2"),
        ({"temperature": 10**400}, "parameters.temperature is"),
        ({"temperature": 0}, "parameters.temperature is 0; allowed: above 0 and at most 2"),
        ({"stop": [1]}, "parameters.stop[0] is 1; allowed: a string"),
        ({"kind": "max"}, "parameters.kind is 'max'; allowed: simple, first"),
        ({"kind": ["simple"]}, "parameters.kind is ['simple']; allowed: simple, first"),
        ({"early": 1}, "parameters.early is 1; allowed: true or false or never"),
        ({"flag": 1}, "parameters.flag is 1; allowed: true or false"),
        ({"extra": "a"}, "parameters.extra is 'a'; allowed: an object"),
        ({"words": [[1, "a"]]}, "parameters.words[0][1] is 'a'; allowed: an integer"),
        ({"flag": True, "top_k": 7}, "parameters.top_k is 7; allowed with flag: others"),
        (3, "parameters is 3; allowed: an object"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(given: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Example.from_mapping(given)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        (b'{"inputs": ["a", 3]}', ("inputs", 1), "inputs[1] is 3; allowed: a text or an object with text"),
        (b'{"inputs": ["a", {"text": ""}]}', ("inputs", 1, "text"), "inputs[1].text is empty; allowed: a text"),
        (b'{"inputs": [{"text_pair": "a"}]}', ("inputs", 0), "inputs[0] lacks text; allowed: an object with text"),
        (b'{"inputs": []}', ("inputs",), "inputs is empty; allowed: at least one element"),
        (b'{"inputs": ["a", "a", "a", "a", "a", "a"]}', ("inputs",), "inputs has 6 elements; allowed: at most 5"),
        (b"{}", ("inputs",), "inputs is missing; allowed: a text or an object"),
        (b'{"inputs": null}', ("inputs",), "inputs is null; allowed: a text or an object"),
        (
            b'{"input": "a"}',
            ("input",),
            "the body has no key 'input' (did you mean 'inputs'?); allowed: inputs, parameters",
        ),
        (b'{"inputs": {"text": "a", "pair": "b"}}', ("inputs", "pair"), "inputs has no key 'pair' (did you mean "),
        (b"[1]", (), "the body is [1]; allowed: an object with inputs"),
        (
            b'{"inputs": "a", "parameters": {"top_k": 7, "flag": true}}',
            ("parameters", "top_k"),
            "parameters.top_k is 7; ",
        ),
        (b'{"inputs": "a", "parameters": {"x": 1}}', ("parameters",), "The following `model_kwargs` are not used"),
    ],
)
def test_an_error_carries_the_path_of_what_does_not_fit(body: bytes, path: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        decode(body, Request)

    assert caught.value.path == path
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": NaN}',
        b'{"inputs": Infinity}',
        b'{"inputs": "\xff"}',
        b'{"inputs": "\\ud800"}',
        b'{"inputs": "a\\udc00bcdefghijkl"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"inputs": "a", "parameters": {"extra": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}",
        b'{"inputs": ' + b"1" * 4_000_000 + b"}",
        b'{"inputs": "a", "parameters": {"temperature": 1e400}}',
        b'{"inputs": "a", "parameters": {"top_k": ' + b"1" * 4_000_000 + b"}}",
        b'{"inputs": "a"} x',
    ],
)
def test_what_is_not_json_or_does_not_end_is_refused_in_one_line(body: bytes) -> None:
    for kind in (Request, Example):
        with pytest.raises(InvalidInputError) as refused:
            decode(body, kind)
        assert len(str(refused.value)) < 400
        assert "\n" not in str(refused.value)


def test_bodies_that_are_no_json_say_so() -> None:
    for body, reason in ((b"", "it is empty"), (b"[" * 9999, "nested too deeply"), (b'"\\ud800a"', "byte")):
        with pytest.raises(InvalidInputError, match=f"the body is not valid JSON: .*{reason}"):
            read_json(body)


def test_of_equal_keys_the_last_wins() -> None:
    assert decode(b'{"inputs": "a", "inputs": "b"}', Request).inputs == "b"


def test_a_text_that_only_python_can_send_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidInputError, match=r"inputs.text_pair has a lone surrogate '\\ud800' at character 1"):
        parse({"text": "a", "text_pair": "a\ud800"}, Text | Pair)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["inputs", "parameters", "text", "text_pair", *Example.__struct_fields__])


@given(JSON | st.dictionaries(NAMES, JSON | st.dictionaries(NAMES, JSON, max_size=3), max_size=3))
def test_bytes_and_mappings_fit_alike_and_every_misfit_is_worded(body: Any) -> None:
    def outcome(read: Callable[[], Any]) -> str:
        try:
            return f"allowed: {read()!r}"
        except InvalidInputError as error:
            return str(error)

    decoded, converted = outcome(lambda: decode(encode(body), Request)), outcome(lambda: convert(body, Request))

    assert decoded == converted
    assert "allowed" in decoded or "model_kwargs" in decoded
    assert "does not fit" not in decoded


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size > 9:
            raise ConfigurationError(f"size is {self.size}; allowed: 1 to 9")


@dataclass(frozen=True)
class Outer:
    model: str
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.5


def test_a_dataclass_is_read_from_a_mapping_and_refuses_keys_that_it_does_not_have() -> None:
    assert convert({"model": "m", "inner": {"size": 3}}, Outer) == Outer("m", Inner(3))
    assert convert({"model": "m", "inner": {"size": "3"}, "rate": "5e-5"}, Outer, texts=True) == Outer(
        "m", Inner(3), 5e-5
    )
    with pytest.raises(UnknownKeyError, match="inner has no key 'sise' .did you mean 'size'.."):
        convert({"model": "m", "inner": {"sise": 3}}, Outer)
    with pytest.raises(InvalidInputError, match="inner is 3; allowed: a mapping"):
        convert({"model": "m", "inner": 3}, Outer)
    with pytest.raises(ConfigurationError, match="^inner: size is 10; allowed: 1 to 9$"):
        convert({"model": "m", "inner": {"size": 10}}, Outer)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("is 3; allowed: a text", ("inputs", 3, "text")),
        InvalidInputError("plain"),
        InputTooLongError("has 9 tokens; allowed: at most 8", ("inputs",)),
        UnknownKeyError("has no key 'a'", ("a",)),
        UnusedParametersError(["a", "b"], ("parameters",)),
    ],
)
def test_errors_cross_processes_with_their_path(error: InvalidInputError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), str(copy), copy.path) == (type(error), str(error), error.path)
    assert str(copy.at(("instances", 1))) == str(error.at(("instances", 1)))


def test_the_json_schema_has_bounds_defaults_and_nulls() -> None:
    (schema,), found = components([Request])

    assert schema == {"$ref": "#/components/schemas/Request"}
    assert found["Example"]["properties"]["temperature"] == {
        "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 2, "default": 1.0}, {"type": "null"}]
    }
    assert found["Request"]["required"] == ["inputs"]
