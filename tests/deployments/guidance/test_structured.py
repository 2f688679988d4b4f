"""Structured output over HTTP: a tiny model whose weights are random writes valid documents all the same."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from benchmarks.load.schemas import document, misfit
from deployments.guidance.compiler import LlGuidance
from deployments.task_server import TaskServer
from pipelines.errors import InvalidInputError
from pipelines.generation.decoding.guide import Constraint
from pipelines.runtime.artifact import FileDigest, ModelArtifact
from tests.deployments.asking import asking, post
from tests.deployments.test_task_server import started

TASK = "text-generation"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CROWD = 12
SCHEMAS = int(os.environ.get("SEXTET_TEST_SCHEMAS", "36"))  # 300 and more take a minute
MESSAGES = [{"role": "user", "content": "강이 어디로 흘러요?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(exported: Callable[..., Path]) -> TaskServer:
    slots = {"slots": 4, "max_tokens": 250, "prefill_chunk_tokens": 16, "turn_tokens": 8}
    return started(TASK, exported("qwen2", TASK), slots=slots)


def of_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def asked_at_once(server: TaskServer, bodies: list[tuple[str, dict[str, Any]]]) -> list[httpx.Response]:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post(f"/{TASK}{path}", json=body) for path, body in bodies))

    answers: list[httpx.Response] = asking(server, ask)
    return answers


def crowd(server: TaskServer, schemas: list[dict[str, Any]], random: Random) -> tuple[int, list[str]]:
    """Asks for a document of each schema, every one with settings of its own, beside requests without a schema.

    Returns how many answers ended by themselves, and what is wrong with those.
    """
    bodies: list[tuple[str, dict[str, Any]]] = []
    for schema in schemas:
        settings = {
            "temperature": random.choice([0, 0.7, 1.5]),
            "top_p": random.choice([1, 0.9]),
            "frequency_penalty": random.choice([0, 1.0]),
            "repetition_penalty": random.choice([1.0, 1.3]),
            "n": random.choice([1, 1, 2]),
            "seed": random.randrange(1000),
            "max_tokens": 200,
        }
        bodies.append((CHAT, {"messages": MESSAGES, "response_format": of_schema(schema), **settings}))
        if random.random() < 0.5:
            bodies.append((COMPLETIONS, {"prompt": "The river", "max_tokens": random.randint(1, 30)}))
    ended, wrong = 0, []
    answers = [one for one in asked_at_once(server, bodies) if "chat" in one.text[:20]]
    assert len(answers) == len(schemas)
    for schema, answer in zip(schemas, answers, strict=True):
        for choice in answer.json()["choices"]:
            if choice["finish_reason"] == "stop":
                ended += 1
                if problem := misfit(choice["message"]["content"], schema):
                    wrong.append(f"{problem}: {choice['message']['content']!r} for {json.dumps(schema)}")
    return ended, wrong


@pytest.mark.parametrize("seed", range(SCHEMAS // CROWD))
def test_every_answer_that_ends_is_a_document_of_its_schema_in_a_crowd(server: TaskServer, seed: int) -> None:
    random = Random(seed)
    schemas = [document(random) for _ in range(CROWD)]

    ended, wrong = crowd(server, schemas, random)

    assert wrong == []
    assert ended > len(schemas) // 2  # the others come to their `max_tokens`


def test_a_stream_is_the_same_document_and_a_stop_string_ends_it_early(server: TaskServer) -> None:
    body = {"messages": MESSAGES, "response_format": of_schema(PERSON), "temperature": 0, "max_tokens": 200}

    whole = post(server, body, CHAT).json()["choices"][0]
    streamed = post(server, body | {"stream": True}, CHAT).text
    stopped = post(server, body | {"stop": ['"age"']}, CHAT).json()["choices"][0]

    assert whole["finish_reason"] == "stop"
    assert misfit(whole["message"]["content"], PERSON) is None
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == whole["message"]["content"]
    assert stopped["message"]["content"] == whole["message"]["content"].split('"age"')[0]


def test_the_answer_is_the_same_alone_and_beside_others(server: TaskServer) -> None:
    body = {
        "messages": MESSAGES,
        "response_format": of_schema(PERSON),
        "temperature": 1.2,
        "seed": 5,
        "max_tokens": 200,
    }
    others = [(COMPLETIONS, {"prompt": "a", "max_tokens": 60, "seed": seed}) for seed in range(6)]

    alone = post(server, body, CHAT).json()["choices"]
    beside = asked_at_once(server, [*others[:3], (CHAT, body), *others[3:]])[3].json()["choices"]

    assert beside == alone


def test_a_json_object_and_an_expression_hold_an_answer_too(server: TaskServer) -> None:
    grammar = {"type": "regex", "value": "(yes|no), [a-z]{3,5}!"}
    given = {"temperature": 1, "seed": 3, "max_tokens": 150}

    some = post(server, {"messages": MESSAGES, "response_format": {"type": "json_object"}, **given}, CHAT).json()
    chosen = post(server, {"prompt": "Well", "response_format": grammar, "n": 2, **given}, COMPLETIONS).json()
    parameters = {"grammar": grammar, "return_full_text": False, "details": True, "max_new_tokens": 50}
    hugging = post(server, {"inputs": "Well", "parameters": parameters}).json()[0]

    assert some["choices"][0]["message"]["content"].lstrip().startswith("{")
    for text in (*(choice["text"] for choice in chosen["choices"]), hugging["generated_text"]):
        assert re.fullmatch(grammar["value"], text)
    assert hugging["details"]["finish_reason"] == "eos_token"


@pytest.mark.parametrize("form", ["json", "json_schema"])
def test_hugging_faces_grammar_takes_a_schema_as_an_object_or_as_its_json(server: TaskServer, form: str) -> None:
    values = [PERSON, json.dumps(PERSON)] if form == "json" else [{"name": "person", "schema": PERSON}]
    for value in values:
        grammar = {"type": form, "value": value}
        parameters = {"grammar": grammar, "return_full_text": False, "max_new_tokens": 200, "seed": 1}

        text = post(server, {"inputs": "Well", "parameters": parameters}).json()[0]["generated_text"]

        assert misfit(text, PERSON) is None


def test_a_tokenizer_that_marks_spaces_is_known_however_its_file_says_so(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported("llama", TASK), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
    tokenizer["model"] |= {"byte_fallback": False}
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token.replace("<0x", "¤0x"): index for token, index in vocab.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    manifest = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    manifest["files"]["tokenizer.json"] = vars(FileDigest.of(folder / "tokenizer.json"))
    (folder / "artifact.json").write_text(json.dumps(manifest), encoding="utf-8")
    body = {"prompt": "The", "response_format": {"type": "regex", "value": "(the |of ){3}"}, "seed": 1, "n": 4}

    choices = post(started(TASK, folder), body | {"max_tokens": 30}, COMPLETIONS).json()["choices"]

    assert [choice["text"] for choice in choices if not re.fullmatch("(the |of ){3}", choice["text"])] == []


def test_a_model_whose_tokens_are_not_known_to_the_library_says_so(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    words = ModelArtifact.open(exported("bert", "question-answering"))

    with pytest.raises(
        InvalidInputError, match="is not possible with this model's tokenizer: can't determine"
    ) as error:
        LlGuidance(words, [1]).compile(Constraint("regex", "a"))

    assert "\n" not in str(error.value)


DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            of_schema({"properties": {"a": {"type": "strin"}}}),
            "json_schema.schema.properties.a cannot be compiled: Invalid",
        ),
        (
            of_schema({"items": {"uniqueItems": True}}),
            'json_schema.schema.items cannot be compiled: Unimplemented keys: ["',
        ),
        (of_schema({"$ref": "#/$defs/a"}), "json_schema.schema cannot be compiled: Pointer '/$defs/a' does not exist"),
        (of_schema(DEEP), "json_schema.schema is nested more than 32 levels deep"),
        (of_schema({"enum": ["a" * 40_000]}), "json_schema.schema has 40013 bytes; allowed: at most 32768"),
        (of_schema(3), "json_schema.schema is 3; allowed: an object"),
        ({"type": "json_schema"}, "json_schema is null; allowed: an object with name and schema"),
        ({"type": "regex", "value": "(a"}, "value cannot be compiled: unclosed group"),
        ({"type": "regex", "value": "a" * 1025}, "value has 1025 characters; allowed: at most 1024"),
        ({"type": "regex"}, "value is null; allowed: a schema or an expression"),
        ({"type": "xml"}, "type is 'xml'; allowed: text, json_object"),
        ({"type": "text", "value": "a"}, "value is 'a'; allowed: with type json or regex only"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_place_in_one_line(
    server: TaskServer, change: dict[str, Any], message: str
) -> None:
    response = post(server, {"messages": MESSAGES, "max_tokens": 2, "response_format": change}, CHAT)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["message"].startswith(f"response_format.{message}")
    assert "\n" not in error["message"]
    assert error["param"].startswith("response_format")


def test_hugging_faces_clients_are_told_the_place_as_well(server: TaskServer) -> None:
    grammar = {"type": "json", "value": {"anyOf": [{"type": "null"}, {"type": "what"}]}}

    response = post(server, {"inputs": "a", "parameters": {"grammar": grammar}})

    assert response.json()["error"].startswith(
        "parameters.grammar.value.anyOf[1] cannot be compiled: Invalid type: what"
    )


def test_a_schema_that_takes_hours_is_refused_and_stops_nobody_meanwhile(server: TaskServer) -> None:
    endless = {"allOf": [{"type": "string", "pattern": f"^(.*a.{{{index}}}){{3}}"} for index in range(61)]}

    async def ask(client: httpx.AsyncClient) -> tuple[httpx.Response, int]:
        given = {"messages": MESSAGES, "max_tokens": 2, "response_format": of_schema(endless)}
        known = {"prompt": "a", "max_tokens": 2, "response_format": {"type": "regex", "value": "a|b"}}
        await client.post(f"/{TASK}{COMPLETIONS}", json=known)
        refused = asyncio.create_task(client.post(f"/{TASK}{CHAT}", json=given))
        answered = 0
        while not refused.done():
            for body in ({"prompt": "a", "max_tokens": 2}, known):
                other = await client.post(f"/{TASK}{COMPLETIONS}", json=body)
                answered += other.status_code == 200
        return refused.result(), answered

    refused, answered = asking(server, ask)
    again = post(server, {"messages": MESSAGES, "response_format": of_schema(endless)}, CHAT)

    assert again.json() == refused.json()
    assert refused.status_code == 400
    assert "response_format.json_schema.schema cannot be compiled: it takes" in refused.json()["error"]["message"]
    assert answered > 20
