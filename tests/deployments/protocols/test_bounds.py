"""Bounds: every number, list and text of every body has one, in its type or as a setting of `limits`."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import inspect

from deployments.cluster.platform import NAMES, Platform
from deployments.protocols.huggingface import read
from deployments.protocols.protocol import modules
from pipelines import schema
from pipelines.errors import InvalidInputError
from pipelines.schema import read_json
from pipelines.tasks import TASKS

# Texts that are read by the model, and their lists: `limits` bounds them, by characters and by count.
BY_LIMITS = ("inputs", "instances", "inputs.data", "prompt", "messages.content", "messages.content.text")
OF_RERANKERS = ("query", "texts", "documents", "documents.text")  # bounded in the same way
FREE = ("content_type", "parameters.content_type", "outputs.parameters.content_type", "adapter_id")
# JSON Schemas: bytes and depth are checked by __post_init__.
SCHEMAS = (
    "parameters.grammar.value",
    "response_format.value",
    "response_format.json_schema.schema_",
    "tools.function.parameters",
)


def unbounded(info: Any, path: str) -> Iterator[str]:
    """The places below `path` that take numbers, texts or lists of any size."""
    if isinstance(info, inspect.Metadata):
        yield from unbounded(info.type, path)
    elif isinstance(info, inspect.UnionType):
        for one in info.types:
            yield from unbounded(one, path)
    elif isinstance(info, inspect.StructType):
        for field in info.fields:
            yield from unbounded(field.type, f"{path}.{field.name}".removeprefix("."))
    elif isinstance(info, inspect.ListType | inspect.VarTupleType):
        if info.max_length is None:
            yield path
        if info.max_length != 0:
            yield from unbounded(info.item_type, path)
    elif isinstance(info, inspect.DictType | inspect.StrType):
        if info.max_length is None:
            yield path
    elif isinstance(info, inspect.IntType | inspect.FloatType):
        low, high = (info.ge, info.gt), (info.le, info.lt)
        if low == (None, None) or high == (None, None):
            yield path
    elif isinstance(info, inspect.AnyType):
        yield path


@pytest.mark.parametrize("task", TASKS)
def test_every_number_list_and_text_that_a_client_can_send_has_a_bound(task: str) -> None:
    platforms = [None, *(Platform.of(name, {}) for name in NAMES)]
    served = [module.operations(TASKS[task], platform) for module in modules() for platform in platforms]
    bodies = {one.path: one for operations in served for one in operations if one.body is not None}
    assert len(bodies) >= 4  # Hugging Face, SageMaker, Vertex AI, Open Inference

    for operation in bodies.values():
        places = set(unbounded(inspect.type_info(operation.body), ""))
        texts = {f"inputs.{name}" for name in TASKS[task].text_fields} | {"inputs.text_pair", "instances.text_pair"}
        texts |= {f"instances.{name}" for name in TASKS[task].text_fields}
        seeds = {place for place in places if place.endswith("seed")}  # 64 bits: checked by __post_init__
        free = {place for place in places if place.removeprefix("parameters.") in FREE or place in FREE}

        by_limits = {*BY_LIMITS, *OF_RERANKERS, *SCHEMAS}
        assert places - by_limits - texts - seeds - free == set(), operation.path


@pytest.mark.parametrize(
    ("task", "parameters", "message"),
    [
        ("text-classification", {"top_k": 10_001}, "top_k is 10001; allowed: 1 to 10000"),
        ("question-answering", {"top_k": 101}, "top_k is 101; allowed: 1 to 100"),
        ("question-answering", {"max_answer_len": 513}, "max_answer_len is 513; allowed: 1 to 512"),
        ("question-answering", {"max_seq_len": 16_385}, "max_seq_len is 16385; allowed: 1 to 16384"),
        ("question-answering", {"max_question_len": 16_385}, "max_question_len is 16385; allowed: 1 to 16384"),
        ("question-answering", {"doc_stride": 16_385}, "doc_stride is 16385; allowed: 0 to 16384"),
        ("token-classification", {"stride": 16_385}, "stride is 16385; allowed: 0 to 16384"),
        ("token-classification", {"ignore_labels": ["O"] * 1001}, "ignore_labels has 1001 elements; allowed: at most"),
        (
            "token-classification",
            {"ignore_labels": ["O" * 257]},
            "ignore_labels[0] has 257 characters; allowed: at most",
        ),
        ("translation", {"src_lang": "e" * 129, "tgt_lang": "f"}, "src_lang has 129 characters; allowed: at most 128"),
        ("translation", {"num_beams": 33}, "num_beams is 33; allowed: 1 to 32"),
        (
            "summarization",
            {"generate_parameters": {"no_repeat_ngram_size": 1025}},
            "generate_parameters.no_repeat_ngram_size is 1025; allowed: 0 to 1024",
        ),
        (
            "text-generation",
            {"bad_words_ids": [[1, 2]] * 1025},
            "bad_words_ids has 1025 elements; allowed: at most 1024",
        ),
        ("text-generation", {"bad_words_ids": [[1] * 65] * 128}, "bad_words_ids has 8320 ids in all; allowed: at most"),
        ("text-generation", {"bad_words_ids": [list(range(8193))]}, "bad_words_ids[0] has 8193 elements; allowed: at"),
        (
            "text-generation",
            {"suppress_tokens": [1] * 4097},
            "suppress_tokens has 4097 elements; allowed: at",
        ),
        ("text-generation", {"begin_suppress_tokens": [1] * 4097}, "begin_suppress_tokens has 4097 elements; allowed"),
        ("text-generation", {"forced_eos_token_id": [1] * 65}, "forced_eos_token_id has 65 elements; allowed: at most"),
        ("text-generation", {"stop": ["a"] * 17}, "stop has 17 elements; allowed: at most 16"),
        ("text-generation", {"stop": ["a" * 129]}, "stop[0] has 129 characters; allowed: at most 128"),
        ("text-generation", {"max_new_tokens": 2**31}, "max_new_tokens is 2147483648; allowed: 1 to 2147483647"),
        ("text-generation", {"seed": 2**64}, "seed is 18446744073709551616; allowed: an integer from 0 to"),
    ],
)
def test_a_parameter_above_its_bound_is_refused_by_name(task: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        TASKS[task].pipeline.parameters_type.from_mapping(parameters)

    assert str(refused.value).startswith(f"parameters.{message}")


@pytest.mark.parametrize(
    ("task", "body"),
    [
        ("text-classification", b'{"inputs": [' + b'"a",' * 1_040_000 + b"3]}"),
        ("translation", b'{"parameters": {"truncation": null}, "inputs": [' + b'"a",' * 1_030_000 + b'"a"]}'),
        ("text-generation", b'{"inputs": "a", "parameters": {"bad_words_ids": [' + b"[1,2]," * 690_000 + b"3]}}"),
        ("text-generation", b'{"inputs": "a", "parameters": {"suppress_tokens": [' + b"1," * 2_000_000 + b"3]}}"),
        ("translation", b'{"inputs": "a",' + b",".join(b'"k%d":1' % number for number in range(350_000)) + b"}"),
    ],
)
def test_a_body_of_four_mebibytes_is_refused_in_a_moment(task: str, body: bytes) -> None:
    started_at = time.process_time()
    read_json(body)
    decoded_at = time.process_time()

    with pytest.raises(InvalidInputError):
        read(TASKS[task], body)

    assert time.process_time() - decoded_at < 0.2 + 8 * (decoded_at - started_at)


def test_a_body_of_a_million_lists_is_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "read_json", lambda body: pytest.fail("it is made of a million objects"))

    with pytest.raises(InvalidInputError) as refused:
        read(TASKS["text-generation"], b'{"inputs": [' + b"[]," * 1_000_000 + b"[]]}")

    assert str(refused.value).startswith("the body does not fit: Expected `str`, got `array` - at `$.inputs[0]`")
