"""Data sets of the Hugging Face Hub, by the `datasets` library: its cache, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from evaluation.readers import Line, table_rows
from pipelines.errors import InvalidInputError

_FORM = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?:(?P<config>[\w.-]+)/)?(?P<split>\w+))?")


@dataclass(frozen=True)
class Reference:
    """`OWNER/NAME[@REVISION][:[CONFIG/]SPLIT]`, such as `klue/klue:ner/validation`."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where it has another form."""
        match = _FORM.fullmatch(text)
        return cls(**match.groupdict()) if match else None


def lines(reference: Reference) -> Iterator[Line]:
    """The rows of a split; raises InvalidInputError where the Hub, the data set or the split cannot be had."""
    table, split = _load(reference)
    yield from table_rows(table, f"{reference.name}:{split} row ")


def _load(reference: Reference) -> tuple[Any, str]:
    import datasets

    name = reference.name
    try:
        found = datasets.load_dataset(name, reference.config, revision=reference.revision)
    except Exception as error:  # from a dozen libraries, as the cause may be
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise InvalidInputError(
            f"{name}: no such file, and as a data set of the Hub it cannot be had ({reason[:200]}); check the id, "
            "the network, HF_TOKEN"
        ) from None
    splits = ", ".join(found)
    split = reference.split or (next(iter(found)) if len(found) == 1 else None)
    if split is None:
        first = next(iter(found))
        raise InvalidInputError(f"{name} has several splits: {splits}; write which one: {name}:{first}")
    if split not in found:
        raise InvalidInputError(f"{name} has no split {split!r}; allowed: {splits}")
    return found[split], split
