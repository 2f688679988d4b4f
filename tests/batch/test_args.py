"""Options of `sextet batch` that are refused, each in one line, before anything starts."""

import re

import pytest

from batch.args import BatchArgs
from pipelines.errors import ConfigurationError

SOUND = {"task": "text-classification", "inputs": ("a.csv",), "output": "b.jsonl", "model": "models/m"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "text-clasification"}, r"--task is .*did you mean 'text-classification'\?"),
        ({"model": None}, "--model is missing"),
        ({"parameters": {"top_k": 0}}, r"--parameters: parameters\.top_k is 0; allowed: 1 to 10000"),
        ({"parameters": {"topk": 1}}, "--parameters: .*topk"),
        ({"output": "b.csv"}, r"--output is 'b\.csv'.*allowed: a name that ends in \.jsonl, \.ndjson, \.parquet"),
        ({"output": "*/b.jsonl"}, r"allowed: one \*, in the name of the file"),
        ({"output": "a-*-*.jsonl"}, r"allowed: one \*"),
        ({"output": "a.jsonl", "inputs": ("a.jsonl",)}, "which is an input"),
        ({"columns": {"txt": "review"}}, r"--column txt=review: .*did you mean 'text'\?.*allowed: text, text_pair"),
        ({"keep": ("answer",)}, "--keep answer: the output has such a field of its own"),
        ({"shard_rows": 0}, "--shard-rows is 0; allowed: 1 to 100000"),
        ({"max_bad_rows": -1}, "--max-bad-rows is -1; allowed: 0 and above"),
        ({"actors": 5000}, "--actors is 5000; allowed: 1 to 4096"),
        ({"threads": 0}, "--threads is 0; allowed: 1 to 1024"),
        ({"device": "gpu"}, "--device is 'gpu'; allowed: cpu, cuda, tensorrt"),
        ({"model": None, "url": "http://127.0.0.1:8000", "threads": 2}, "--threads are for --model"),
        ({"url": "127.0.0.1:8000"}, "--url is '127.0.0.1:8000'; allowed: an address such as http://127.0.0.1:8000"),
        ({"encoding": "utf-9"}, "--encoding is 'utf-9', which Python does not know"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_line(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        BatchArgs(**{**SOUND, **changes})  # type: ignore[arg-type]
    assert re.search(says, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)


def test_parts_of_generators_are_smaller() -> None:
    assert BatchArgs(**SOUND).part_rows == 2048  # type: ignore[arg-type]
    assert BatchArgs(**{**SOUND, "task": "translation"}).part_rows == 64  # type: ignore[arg-type]
    assert BatchArgs(**{**SOUND, "shard_rows": 7}).part_rows == 7  # type: ignore[arg-type]
