"""What an actor makes of a part, without Ray: answers equal to those of `pipelines.load`, row for row, in all tasks."""

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

import pipelines
from batch.lines import Form, join_parquet
from batch.local_model import LocalModel, Refused
from batch.parts import Given, Part
from batch.scorer import Finished, Scorer, finished_of, table_of
from pipelines.errors import GenerationError
from tests.artifacts import ARCHITECTURES

PARAMETERS: dict[str, dict[str, Any]] = {
    "text-classification": {"top_k": 2},
    "question-answering": {"top_k": 1},
    "token-classification": {"aggregation_strategy": "simple"},
    "translation": {"generate_parameters": {"max_new_tokens": 5}},
    "summarization": {"generate_parameters": {"max_new_tokens": 5, "min_length": 1}},
    "text-generation": {"max_new_tokens": 5, "do_sample": False},
}
SENTENCES = [
    "Anna Smith lives in Paris.",
    "A much longer sentence, which was written so that the rows of one part differ in their lengths by a lot.",
    "Short.",
    "이 문장은 한국어로 쓰였습니다.",
    "The old man is looking for the keys after work.",
]


def inputs_of(task: str) -> list[Any]:
    if task == "question-answering":
        return [{"question": "Who lives where?", "context": f"{sentence} And so on."} for sentence in SENTENCES]
    return SENTENCES


def given(inputs: list[Any]) -> list[Given]:
    return [Given(number, f"rows:{number}", one, {"id": number}) for number, one in enumerate(inputs, 1)]


def scored(scorer: Scorer, rows: list[Given]) -> Finished:
    return finished_of(scorer(table_of(Part(0, 3, len(rows), 0.5, False, rows), is_finished=False)))


@pytest.mark.parametrize("task", ARCHITECTURES)
def test_a_part_is_answered_as_the_pipeline_answers_each_row(task: str, exported: Callable[..., Path]) -> None:
    artifact = exported(ARCHITECTURES[task], task)
    model = LocalModel(task, str(artifact), PARAMETERS[task], threads=2)
    scorer = Scorer(model, Form(task, ".jsonl", ("id",)), gives_way=False)

    part = scored(scorer, given(inputs_of(task)))

    lines = [json.loads(line) for line in part.content.splitlines()]
    oracle = pipelines.load(artifact)
    assert [(line["row"], line["id"]) for line in lines] == [(number, number) for number in range(1, 6)]
    assert (part.place, part.count, part.share, part.n_bad, part.bad) == ((0, 3), 5, 0.5, 0, b"")
    for one, line in zip(inputs_of(task), lines, strict=True):
        expected = oracle(one, **PARAMETERS[task])
        assert rounded(line["answer"]) == rounded(json.loads(json.dumps(expected)))


def rounded(value: Any) -> Any:
    """Kernels round differently in batches of other shapes."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def test_rows_that_cannot_be_answered_are_apart_with_their_reason(exported: Callable[..., Path]) -> None:
    model = LocalModel("text-classification", str(exported("bert", "text-classification")), {})
    scorer = Scorer(model, Form("text-classification", ".jsonl", ("id",), ("a.csv", "b.csv")), gives_way=False)
    rows = [
        Given(1, "a.csv:1", "fine", {"id": 1}),
        Given(2, "a.csv:2", None, {}, "3 columns where the header has 2"),
        Given(3, "a.csv:3", "x" * 200_001, {"id": 3}),
        Given(4, "a.csv:4", "fine too", {"id": 4}),
    ]

    part = scored(scorer, rows)

    assert [json.loads(line)["row"] for line in part.content.splitlines()] == [1, 4]
    bad = [json.loads(line) for line in part.bad.splitlines()]
    assert [(one["row"], one["file"], one["where"]) for one in bad] == [
        (2, "a.csv", "a.csv:2"),
        (3, "a.csv", "a.csv:3"),
    ]
    assert bad[0]["reason"] == "3 columns where the header has 2"
    assert "has 200001 characters; allowed: at most 200000" in bad[1]["reason"]
    assert (part.n_bad, bad[1]["id"], part.reason) == (2, 3, f"a.csv:3: {bad[1]['reason']}")


def test_a_prompt_that_is_too_long_is_refused_alone(exported: Callable[..., Path]) -> None:
    model = LocalModel("text-generation", str(exported("qwen2", "text-generation")), {"max_new_tokens": 3}).open()
    short, long, other = model.answers(["Hello", "word " * 5000, "Goodbye"])
    assert isinstance(long, Refused)
    assert "tokens" in long.reason
    assert not isinstance(short, Refused)
    assert not isinstance(other, Refused)


def test_where_the_model_fails_for_a_row_the_others_are_answered(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LocalModel("text-classification", str(exported("bert", "text-classification")), {}).open()
    forward = opened._scheduler._forward  # type: ignore[attr-defined]

    def failing(rows: Any) -> Any:
        if any(row.n_tokens > 50 for row in rows):
            raise GenerationError("the model failed")
        return forward(rows)

    monkeypatch.setattr(opened._scheduler, "_forward", failing)
    first, second, third = opened.answers(["fine", "poison " * 50, "fine as well"])
    assert second == Refused("the model failed")
    assert first[0]["label"]
    assert third[0]["label"]


def test_parts_of_several_threads_are_answered_at_once_and_in_their_own_order(exported: Callable[..., Path]) -> None:
    artifact = exported("bert", "text-classification")
    model = LocalModel("text-classification", str(artifact), {"top_k": 1}, threads=2).open()
    lists = [[f"{sentence} {part}" for sentence in SENTENCES * 40] for part in range(4)]
    found: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda part=part: found.update({part: model.answers(lists[part])})) for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    oracle = pipelines.load(artifact)
    for part in range(4):
        assert rounded(found[part][7]) == oracle(lists[part][7], top_k=1)
        assert len(found[part]) == 200


@pytest.mark.parametrize("task", ARCHITECTURES)
def test_parquet_has_the_type_of_the_answer(task: str, exported: Callable[..., Path]) -> None:
    model = LocalModel(task, str(exported(ARCHITECTURES[task], task)), PARAMETERS[task])
    rows = given(inputs_of(task))
    as_lines = scored(Scorer(model, Form(task, ".jsonl", ("id",)), gives_way=False), rows)
    as_table = scored(Scorer(model, Form(task, ".parquet", ("id",)), gives_way=False), rows)

    table = parquet.read_table(io.BytesIO(as_table.content))

    expected = [json.loads(line)["answer"] for line in as_lines.content.splitlines()]
    answers = [one if isinstance(one, list) else [one] for one in expected]
    read = [[without_none(one) for one in answer] for answer in table.column("answer").to_pylist()]
    assert read == rounded(answers)
    assert table.column("id").to_pylist() == ["1", "2", "3", "4", "5"]
    assert str(table.schema.field("answer").type).startswith("list<element: struct<")


def without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in value.items() if one is not None}


def test_parquet_of_several_parts_becomes_one_file() -> None:
    form = Form("translation", ".parquet", ())
    rows = given(["a", "b"])
    parts = [form.content(0, rows, [[{"translation_text": text}], []]) for text in ("x", "y")]
    joined = io.BytesIO()
    join_parquet(joined, parts)
    table = parquet.read_table(io.BytesIO(joined.getvalue()))
    assert table.column("answer").to_pylist() == [[{"translation_text": "x"}], [], [{"translation_text": "y"}], []]
