"""`sextet evaluate`: the same numbers for a checkpoint, its artifact and a served task; kept with the artifact."""

import hashlib
import json
import math
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipelines
from deployments.protocols import huggingface
from evaluation.evaluate import EvaluateArgs, evaluate
from evaluation.report import Report, data_name
from pipelines.errors import ConfigurationError, InvalidInputError, SextetError
from pipelines.runtime.artifact import ModelArtifact
from tests.evaluation import labelled
from tests.evaluation.labelled import ARCHITECTURES

Make = Callable[..., Path]

ROWS: dict[str, list[dict[str, Any]]] = labelled.ROWS | {
    "text-classification": [
        {"text": "The film was wonderful", "label": "positive"},
        {"text": "음식은 맛이 없었다", "label": "negative"},
        {"text": "The river flows to the sea.", "label": "neutral"},
        {"text": "great 👍", "label": "positive"},
    ],
    "question-answering": [
        {"question": "Who?", "context": "Anna wrote it.", "answers": {"text": ["Anna"], "answer_start": [0]}},
        {"question": "When?", "context": "In Norway.", "answers": {"text": [], "answer_start": []}},
    ],
}


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str], str]:
    def write(task: str) -> str:
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def artifact(tmp_path: Path, exported: Make) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(exported("bert", "text-classification"), tmp_path / "reviews"))


def measured(*systems: str | Path, data: str, post: Any = None, **changes: Any) -> Report:
    args = EvaluateArgs(tuple(map(str, systems)), data, **{"resamples": 20, **changes})
    return evaluate(args, post, lambda _line: None)


def served(artifact: Path) -> Callable[[str, Any], Any]:
    """What a task server does to the body of a request, without the network: its own protocol and its own pipeline."""
    pipeline = pipelines.load(artifact)

    def post(url: str, body: Any) -> Any:
        protocol = huggingface.HuggingFace(pipeline)
        assert url == f"http://127.0.0.1:8000/{protocol.task.name}"
        request = protocol.read(json.dumps(body).encode(), {})
        inputs, parameters = protocol.parse(request)
        answers = list(pipeline._answers(inputs, parameters))
        return json.loads(json.dumps(huggingface.write(protocol.task, request, answers)))

    return post


@pytest.mark.parametrize("task", list(ROWS))
def test_a_checkpoint_its_artifact_and_a_served_task_have_the_same_scores(
    task: str, data: Callable[[str], str], tmp_path: Path, checkpoint: Make, exported: Make
) -> None:
    source, artifact = checkpoint(ARCHITECTURES[task], task), tmp_path / "artifact"
    shutil.copytree(exported(ARCHITECTURES[task], task), artifact)
    url = f"http://127.0.0.1:8000/{task}/"
    report = measured(source, artifact, url, data=data(task), task=task, post=served(artifact), parameters=fast(task))
    first, second, third = report.scores.values()
    assert list(report.scores) == ["PyTorch", "fp32 artifact", "127.0.0.1:8000"]
    assert first.keys() == second.keys() == third.keys()
    for name, (value, low, high) in first.items():
        assert second[name][0] == pytest.approx(value, abs=1e-3)
        assert third[name][0] == pytest.approx(value, abs=1e-3)
        assert low <= high


def fast(task: str) -> dict[str, Any]:
    return {"max_new_tokens": 8, "num_beams": 1} if task in ("translation", "summarization") else {}


def test_perplexity_is_that_of_transformers_own_loss(data: Callable[[str], str], checkpoint: Make) -> None:
    source = checkpoint("gpt2", "text-generation")
    report = measured(source, data=data("text-generation"), task="text-generation")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    loss = tokens = 0.0
    for row in ROWS["text-generation"]:
        ids = tokenizer(row["text"], return_tensors="pt").input_ids
        with torch.no_grad():
            loss += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert report.scores["PyTorch"]["perplexity"][0] == pytest.approx(math.exp(loss / tokens), rel=1e-4)


def test_an_artifact_is_measured_beside_its_checkpoint_and_keeps_what_was_found(
    data: Callable[[str], str], tmp_path: Path, exported: Make
) -> None:
    artifact = tmp_path / "reviews"
    shutil.copytree(exported("bert", "text-classification", "int8"), artifact)
    before = ModelArtifact.open(artifact).manifest
    for _ in range(2):  # the second time takes the place of the first
        report = measured(artifact, data=data("text-classification"), output=tmp_path / "report")
    manifest = ModelArtifact.open(artifact).manifest
    assert list(report.scores) == ["PyTorch", "int8 artifact"]
    assert list(manifest.metrics) == ["text-classification.jsonl"]
    kept = manifest.metrics["text-classification.jsonl"]
    assert kept["rows"] == 4
    assert kept["scores"]["int8 artifact"]["accuracy"][0] == report.scores["int8 artifact"]["accuracy"][0]
    assert set(kept["difference"]) == set(report.scores["PyTorch"])
    assert manifest.files["model.onnx"] == before.files["model.onnx"]
    card = (artifact / "README.md").read_text()
    metadata: Any = ModelCard(card).data
    (kept_result,) = [one for one in metadata.eval_results if one.metric_type == "accuracy"]
    assert kept_result.task_type == "text-classification"
    assert kept_result.dataset_name == "text-classification.jsonl"
    assert kept_result.metric_value == round(report.scores["int8 artifact"]["accuracy"][0], 4)
    assert card.count("## Measured on text-classification.jsonl") == 1
    assert card.index("## Measured on") < card.index("## Use")
    assert "(confusion-text-classification.jsonl-int8-artifact.png)" in card
    assert (artifact / "confusion-text-classification.jsonl-int8-artifact.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(json.dumps(kept))
    table = report.text().splitlines()
    assert table[1].split() == ["score", "PyTorch", "int8", "artifact", "difference"]


def test_sections_about_other_data_stay_in_the_card(data: Callable[[str], str], tmp_path: Path, artifact: Path) -> None:
    one = data("text-classification")
    other = str(shutil.copy(one, tmp_path / "other.jsonl"))
    for name in (one, other, one):
        measured(artifact, data=name, alone=True)
    card = (artifact / "README.md").read_text()
    assert card.count("## Measured on") == 2
    pictures = {f"confusion-{name}.jsonl-fp32-artifact.png" for name in ("text-classification", "other")}
    assert {path.name for path in artifact.glob("*.png")} == pictures  # each of its own rows
    assert all(f"({picture})" in card for picture in pictures)
    assert card.rstrip().endswith("and `sextet serve cluster.yaml`.")
    assert set(ModelArtifact.open(artifact).manifest.metrics) == {"text-classification.jsonl", "other.jsonl"}


def test_files_of_one_name_and_other_content_have_a_place_each(
    data: Callable[[str], str], tmp_path: Path, artifact: Path
) -> None:
    first = Path(data("text-classification"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "other").mkdir()
    copy = shutil.copy(first, tmp_path / "copy")
    other = tmp_path / "other" / first.name
    other.write_text("".join(first.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    said: list[str] = []
    for name in (first, other, copy, other):
        evaluate(EvaluateArgs((str(artifact),), str(name), resamples=5, alone=True), lambda *_: None, said.append)

    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    second = f"text-classification.jsonl (sha256 {digest[:16]})"
    kept = ModelArtifact.open(artifact).manifest.metrics
    assert {name: found["rows"] for name, found in kept.items()} == {"text-classification.jsonl": 4, second: 2}
    assert kept[second]["sha256"] == digest
    card = (artifact / "README.md").read_text()
    headings = [line.removeprefix("## Measured on ") for line in card.splitlines() if line.startswith("## Measured on")]
    assert sorted(headings) == ["text-classification.jsonl", second]
    pictures = [path.name for path in artifact.glob("*.png")]
    assert len(pictures) == 2
    assert all(f"({picture})" in card for picture in pictures)
    assert [line for line in said if line.startswith("wrote it into")] == [
        f"wrote it into {artifact}",
        f"wrote it into {artifact} as {second}: the text-classification.jsonl that was measured before is another",
        f"wrote it into {artifact}, in the place of what was measured on text-classification.jsonl before",
        f"wrote it into {artifact}, in the place of what was measured on {second} before",
    ]


def test_what_cannot_be_written_into_an_artifact_is_refused_before_the_measuring(
    tmp_path: Path, artifact: Path
) -> None:
    (artifact / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"holds notes\.txt, which no export wrote; move it away first"):
        measured(artifact, data=str(tmp_path / "absent.csv"), alone=True)


def test_figures_that_a_full_disk_keeps_out_of_the_artifact_are_said(
    data: Callable[[str], str], artifact: Path
) -> None:
    said: list[str] = []
    args = EvaluateArgs((str(artifact),), data("text-classification"), resamples=5, alone=True)
    with small_files(1000), pytest.raises(ConfigurationError, match="what was measured cannot be kept: File too large"):
        evaluate(args, lambda *_: None, said.append)

    assert any("accuracy" in line for line in said)
    ModelArtifact.open(artifact)


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """A limit on the size of files stands for the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_picture_of_data_with_a_long_name_has_a_shorter_one(
    data: Callable[[str], str], tmp_path: Path, artifact: Path
) -> None:
    name = str(shutil.copy(data("text-classification"), tmp_path / f"{'영화' * 40}.jsonl"))
    measured(artifact, data=name, alone=True)

    [picture] = artifact.glob("*.png")
    assert f"({picture.name})" in (artifact / "README.md").read_text()


def test_a_sample_and_other_parameters_take_the_place_of_nothing(
    data: Callable[[str], str], tmp_path: Path, exported: Make
) -> None:
    artifact, name = tmp_path / "writer", data("text-generation")
    shutil.copytree(exported(ARCHITECTURES["text-generation"], "text-generation"), artifact)
    rows = len(ROWS["text-generation"])
    for changes in ({}, {"parameters": {"max_length": 8}}, {"max_samples": 1, "seed": 7}, {"max_samples": rows}):
        measured(artifact, data=name, alone=True, **changes)

    assert set(ModelArtifact.open(artifact).manifest.metrics) == {
        "text-generation.jsonl",
        "text-generation.jsonl (max_length=8)",
        "text-generation.jsonl (1 rows drawn with seed 7)",
    }


def test_what_is_no_single_file_has_the_name_of_all_of_it(tmp_path: Path, exported: Make) -> None:
    artifact = tmp_path / "translation"
    shutil.copytree(exported(ARCHITECTURES["translation"], "translation"), artifact)
    digests = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.en").write_text(f"Number {folder}\n")
        (tmp_path / folder / "a.fr").write_text("Nombre\n")
        names = f"{tmp_path / folder / 'a.en'}, {tmp_path / folder / 'a.fr'}"
        report = measured(artifact, data=names, alone=True, parameters=fast("translation"))
        digests.add(report.digest)

    assert report.data == "a.en, a.fr"
    assert None not in digests
    assert len(digests) == len(ModelArtifact.open(artifact).manifest.metrics) == 2


def test_a_data_set_of_the_hub_is_named_with_its_owner() -> None:
    assert data_name("someone/reviews:klue/validation") == "someone/reviews:klue/validation"


def test_what_an_older_release_measured_stays_where_it_is(data: Callable[[str], str], artifact: Path) -> None:
    manifest = ModelArtifact.open(artifact).manifest
    older = {"text-classification.jsonl": {"rows": 9}, "other.csv": {"rows": 1}}
    (artifact / "artifact.json").write_text(replace(manifest, metrics=older).to_json())
    measured(artifact, data=data("text-classification"), alone=True)

    kept = dict(ModelArtifact.open(artifact).manifest.metrics)
    assert {name: kept.pop(name) for name in older} == older
    assert [found["rows"] for found in kept.values()] == [4]


def test_an_artifact_whose_checkpoint_is_gone_is_measured_alone(
    data: Callable[[str], str], tmp_path: Path, artifact: Path
) -> None:
    manifest = ModelArtifact.open(artifact).manifest
    gone = replace(manifest, source=replace(manifest.source, checkpoint=str(tmp_path / "gone" / "x")))
    (artifact / "artifact.json").write_text(gone.to_json())
    said: list[str] = []
    report = evaluate(
        EvaluateArgs((str(artifact),), data("text-classification"), resamples=5), lambda *_: None, said.append
    )
    assert list(report.scores) == ["fp32 artifact"]
    assert any(line.startswith("no column for PyTorch: there is no folder") for line in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "fill-mask"}, "task is 'fill-mask'; allowed: text-classification"),
        ({"task": None}, "does not say its task; give --task, one of text-classification"),
        ({"resamples": 0}, "resamples is 0; allowed: 1 and above"),
        ({"seed": -1}, "seed is -1; allowed: 0 and above"),
        ({"max_bad_rows": -1}, "max_bad_rows is -1; allowed: 0 and above"),
        ({"parameters": {"foo": 1}}, "not used by the model: ['foo']"),
        ({"parameters": {"top_k": 1}}, "parameters.top_k is 1; allowed where answers are scored: leave it out"),
        ({"output": Path(__file__)}, "test_evaluate.py, which is no folder (File exists)"),
        ({"problem_type": "many"}, "problem_type is 'many'; allowed: single_label_classification"),
        (
            {"labels": {"neutral": "meh"}},
            "jsonl:3: PyTorch knows no label 'meh', only negative, neutral, positive; rename",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    data: Callable[[str], str], checkpoint: Make, changes: dict[str, Any], message: str
) -> None:
    source = checkpoint("bert", "text-classification")
    with pytest.raises(SextetError) as error:
        measured(source, data=data("text-classification"), **{"task": "text-classification"} | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "row", "parameters", "message"),
    [
        ("text-generation", {"text": "word " * 300}, {}, "tokens, of which PyTorch reads 256 at most"),
        ("text-generation", {"text": "a"}, {}, "no text has two tokens, the second of which could be predicted"),
        (
            "question-answering",
            {"question": "Who? " * 99, "context": "Anna.", "answers": {"text": ["Anna"], "answer_start": [0]}},
            {},
            "PyTorch cannot answer (Exception: Truncation error",
        ),
        ("text-generation", {"text": "a b"}, {"top_k": 1}, "parameters has top_k; allowed for perplexity: max_length"),
        ("text-generation", {"text": "a b"}, {"max_length": 1}, "max_length is 1; allowed: an integer from 2"),
        ("token-classification", {"text": "a", "entities": []}, {"aggregation_strategy": "none"}, "scored: simple"),
        ("translation", {"source": "a", "target": "b"}, {"num_return_sequences": 2}, "answers are scored: 1"),
    ],
)
def test_what_cannot_be_answered_is_named_by_file_and_line(
    task: str,
    row: dict[str, Any],
    parameters: dict[str, Any],
    message: str,
    data: Callable[[str], str],
    checkpoint: Make,
) -> None:
    path = data(task)
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    kept = [] if "no text" in message else [one for one in rows if one.keys() >= row.keys()]
    Path(path).write_text("".join(json.dumps(one) + "\n" for one in [*kept, row]), encoding="utf-8")
    with pytest.raises(InvalidInputError) as error:
        measured(checkpoint(ARCHITECTURES[task], task), data=path, task=task, parameters=parameters)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert parameters or str(error.value).startswith(f"{path}:{len(kept) + 1}: ")


def test_several_labels_are_no_number(tmp_path: Path, checkpoint: Make, exported: Make) -> None:
    data = tmp_path / "stars.csv"
    data.write_text("text,label\ngood,4.5\n", encoding="utf-8")
    given = {"data": str(data), "task": "text-classification", "problem_type": "regression"}
    with pytest.raises(ConfigurationError, match="problem_type is regression, but PyTorch has 3 labels, not one"):
        measured(checkpoint("bert", "text-classification"), **given)
    url, post = "http://127.0.0.1:8000/text-classification", served(exported("bert", "text-classification"))
    with pytest.raises(ConfigurationError, match=r"but 127\.0\.0\.1:8000 has 3 labels, not one"):
        measured(url, post=post, **given)


def test_a_url_has_to_name_a_task_and_its_server_has_to_answer_as_one(data: Callable[[str], str]) -> None:
    with pytest.raises(ConfigurationError, match="http://127.0.0.1:8000/ does not end in a task; give --task"):
        measured("http://127.0.0.1:8000/", data=data("translation"))
    with pytest.raises(ConfigurationError, match="is translation served there"):
        measured("http://127.0.0.1:8000/translation", data=data("translation"), post=lambda _url, _body: {"no": 1})
    other = {"post": lambda *_: [{"translation_text": "x"}], "task": "summarization"}
    with pytest.raises(ConfigurationError, match="is summarization served there"):
        measured("http://127.0.0.1:8000/t5", data=data("summarization"), **other)
    with pytest.raises(ConfigurationError, match=r"http://\[x/translation is no URL \(Invalid IPv6 URL\)"):
        measured("http://[x/translation", data=data("translation"))
