"""Parameters: a task's schema is its dataclass, and a wrong value is named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from pipelines.errors import InvalidInputError, UnusedParametersError
from pipelines.tasks.parameters import Parameters, require


@dataclass(frozen=True)
class Example(Parameters):
    top_k: int | None = None
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    kind: Literal["simple", "first"] = "simple"
    flag: bool = False
    early: Literal[True, False, "never"] = False
    extra: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")


def test_none_and_absence_both_mean_the_default() -> None:
    assert Example.from_mapping({"top_k": None, "stop": None}) == Example()


def test_values_take_the_annotated_type() -> None:
    given: dict[str, Any] = {"top_k": 3, "temperature": 2, "stop": ["a", "b"], "kind": "first"}
    given |= {"flag": True, "early": True, "extra": {"a": 1}}

    assert Example.from_mapping(given) == Example(3, 2.0, ("a", "b"), "first", True, True, {"a": 1})


def test_one_string_is_a_list_of_one() -> None:
    assert Example.from_mapping({"stop": "a"}).stop == ("a",)


def test_unknown_names_are_worded_as_transformers_words_them() -> None:
    with pytest.raises(UnusedParametersError) as caught:
        Example.from_mapping({"top_k": 1, "x": 1, "y": 2})

    assert str(caught.value) == "The following `model_kwargs` are not used by the model: ['x', 'y']"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": "3"}, "parameters.top_k is '3'; allowed: an integer"),
        ({"top_k": True}, "parameters.top_k is True; allowed: an integer"),
        ({"temperature": float("nan")}, "parameters.temperature is nan; allowed: a finite number"),
        ({"temperature": 10**400}, "parameters.temperature is"),
        ({"temperature": 0}, "parameters.temperature is 0.0; allowed: a number above 0"),
        ({"stop": [1]}, "parameters.stop[0] is 1; allowed: a string"),
        ({"kind": "max"}, "parameters.kind is 'max'; allowed: simple, first"),
        ({"kind": ["simple"]}, "parameters.kind is ['simple']; allowed: simple, first"),
        ({"early": 1}, "parameters.early is 1; allowed: True, False, never"),
        ({"flag": 1}, "parameters.flag is 1; allowed: true or false"),
        ({"extra": "a"}, "parameters.extra is 'a'; allowed: an object"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Example.from_mapping(given)

    assert message in str(caught.value)
