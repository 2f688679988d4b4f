"""The exporter transformers5: architectures of transformers 5, exported apart, answer here as they do there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.auto import configuration_auto, modeling_auto

import pipelines
from checkpoints.generations import ONLY_4, ONLY_5
from export.apart import PYTHON as VARIABLE
from export.build import ExportArgs, export_all, export_checkpoint
from pipelines.errors import SextetError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.encoder import PaddedRows, layout_of
from pipelines.runtime.rows import EncoderRow
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer
from tests import kept, transformers5
from tests.inside import ROOT, installed
from tests.known_models import CLASSIFY, TRANSLATE, KnownModel
from tests.transformers5 import KNOWN_MODELS, PYTHON, Request, answered

EXPORTER = "transformers5"
TEXTS = ("The river flows from the mountains", "정말 재미있는 영화였어요.")
NEW_TOKENS = 200
OLDER = (
    KnownModel("google-t5/t5-small", "t5", TRANSLATE, "t5", {"decoder_start_token_id": 0}),
    KnownModel("answerdotai/ModernBERT-base", "modernbert", CLASSIFY, "bert"),
)
"""Those that transformers 4 has, too, and whose code is another in transformers 5."""
EXPORTED = tuple(known for known in (*KNOWN_MODELS, *OLDER) if not known.refused)
REFUSED = tuple(known for known in KNOWN_MODELS if known.refused)


@pytest.fixture(scope="module")
def made() -> Path:
    """Checkpoints (`X`), their artifacts (`X-artifact`) and what transformers 5 answers (answers.json)."""
    installed("transformers5")
    files = [Path(one) for one in (transformers5.__file__, __file__)]
    lock = ROOT / "requirements" / "transformers5.lock"
    made_from = f"transformers5-{kept.digest(kept.of_artifacts(), *(file.read_text() for file in [*files, lock]))}"
    kept.tidy(made_from)

    def make(folder: Path) -> None:
        models = (*EXPORTED, *REFUSED)
        places = [folder / known.architecture for known in models]
        requests = [
            Request.of(known, place, texts=TEXTS, new_tokens=NEW_TOKENS)
            for known, place in zip(models, places, strict=True)
        ]
        answers = answered(requests)
        (folder / "answers.json").write_text(
            json.dumps({known.architecture: answer for known, answer in zip(models, answers, strict=True)})
        )
        export_all([args_of(known, folder) for known in EXPORTED])

    return kept.kept(made_from, "models", make)


def args_of(known: KnownModel, folder: Path, output: Path | None = None, exporter: str = EXPORTER) -> ExportArgs:
    source = folder / known.architecture
    return ExportArgs(str(source), known.task, output or Path(f"{source}-artifact"), exporter=exporter)


def refusal(args: ExportArgs) -> str:
    with pytest.raises(SextetError) as refused:
        export_checkpoint(args)
    assert "\n" not in str(refused.value)
    assert not args.output.exists()
    return str(refused.value)


# --- answers ---


@pytest.mark.parametrize("known", EXPORTED, ids=lambda known: known.name)
def test_an_artifact_answers_as_transformers_5_does(known: KnownModel, made: Path) -> None:
    artifact = ModelArtifact.open(made / f"{known.architecture}-artifact", task=known.task)
    expected = json.loads((made / "answers.json").read_text())[known.architecture]

    assert artifact.manifest.versions["transformers"].startswith("5.")
    assert "optimum" not in artifact.manifest.versions
    assert artifact.manifest.architecture == known.architecture
    assert artifact.manifest.parity.passed
    if known.generates:
        assert artifact.manifest.cache == "slots"
        assert [answer_of(artifact, text, known) for text in TEXTS] == expected
        return
    encoder = InferenceSession(artifact.graph("model"), SessionConfig())
    layout = layout_of(encoder.input_names, artifact.manifest.tokenizer.pad_token_id)
    assert isinstance(layout, PaddedRows)
    encodings = Tokenizer(artifact).encode(TEXTS, max_length=64)
    rows = [EncoderRow.of(one, np.asarray(one.ids, np.int64)) for one in encodings]
    together = encoder.run(layout.feeds(rows))  # the shorter text is padded
    for name, logits in together.items():
        for row, (text, answer) in enumerate(zip(encodings, expected, strict=True)):
            found = logits[row] if name == "logits" and logits.ndim == 2 else logits[row, : len(text)]
            np.testing.assert_allclose(found, answer[name][0], atol=2e-4)


def answer_of(artifact: ModelArtifact, text: str, known: KnownModel) -> Any:
    """The ids that the pipeline writes to a text, or the text that a translation is."""
    long = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    pipeline = pipelines.load(artifact.path)
    if known.task == TRANSLATE:
        return pipeline(text, num_beams=1, **long)[0]["translation_text"]  # the pipeline searches with four by itself
    (answer,) = pipeline(text, do_sample=False, details=True, **long)
    return [token["id"] for token in answer["details"]["tokens"]]


# --- refusals ---


@pytest.mark.parametrize("known", REFUSED, ids=lambda known: known.name)
def test_a_generator_without_slots_is_refused_in_one_line(known: KnownModel, made: Path, tmp_path: Path) -> None:
    said = refusal(args_of(known, made, tmp_path / "artifact"))
    assert said.startswith(f"{made / known.architecture} cannot be exported: the exporter transformers5 decodes in KV")
    assert known.says in said


def test_the_default_exporter_says_what_a_newer_architecture_needs(made: Path, tmp_path: Path) -> None:
    (known, *_) = (one for one in KNOWN_MODELS if one.generates)
    args = args_of(known, made, tmp_path / "artifact", exporter=ExportArgs("", "", Path()).exporter)
    assert refusal(args) == (
        f"{made / known.architecture} is a {known.architecture!r} model, which needs transformers 5: "
        "`sextet export --exporter transformers5`"
    )


def test_each_generation_knows_the_architectures_that_it_alone_has() -> None:
    installed("transformers5")
    code = (
        "import json\nfrom transformers.models.auto import configuration_auto as c, modeling_auto as m\n"
        "print(json.dumps([list(c.CONFIG_MAPPING_NAMES), sorted({t for n in dir(m) if n in "
        f"{HEADS!r} for t in getattr(m, n)}})]))"
    )
    answer = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True).stdout
    newer, newer_heads = map(set, json.loads(answer.splitlines()[-1]))
    older = set(configuration_auto.CONFIG_MAPPING_NAMES)
    older_heads = {name for mapping in HEADS for name in getattr(modeling_auto, mapping)}

    assert set(ONLY_5.split()) == newer_heads - older
    assert set(ONLY_4.split()) == older_heads - newer


HEADS = tuple(
    f"MODEL_FOR_{head}_MAPPING_NAMES"
    for head in (
        "CAUSAL_LM",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "SEQUENCE_CLASSIFICATION",
        "TOKEN_CLASSIFICATION",
        "QUESTION_ANSWERING",
    )
)


@pytest.mark.parametrize("optimize", ["O1", "O2"])
def test_optimums_levels_are_refused(optimize: str, tmp_path: Path) -> None:
    args = ExportArgs("nothing", CLASSIFY, tmp_path / "artifact", exporter=EXPORTER, optimize=optimize)
    assert refusal(args) == (
        f"optimize {optimize} is a level of Optimum's, which exporter transformers5 is without; leave --optimize out"
    )


def test_an_exporter_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    args = ExportArgs("nothing", CLASSIFY, tmp_path / "artifact", exporter="transformers6")
    assert refusal(args) == "exporter is 'transformers6'; allowed: optimum, transformers5"


# --- the environment ---


def test_without_its_environment_the_exporter_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    said = refusal(ExportArgs("nothing", CLASSIFY, tmp_path / "artifact", exporter=EXPORTER))
    assert said.startswith("exporter transformers5 needs transformers 5, in an environment of its own: ")
    assert "make transformers5" in said
    assert "[transformers5,cpu]'" in said
    assert said.endswith(f"whose Python {VARIABLE} then names")


def test_a_python_that_does_not_exist_or_has_no_transformers_5_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = ExportArgs("nothing", CLASSIFY, tmp_path / "artifact", exporter=EXPORTER)
    monkeypatch.setenv(VARIABLE, "/nowhere/python")
    assert refusal(args) == (
        f"{VARIABLE} is '/nowhere/python', and there is no such file; name the Python of an environment"
    )
    monkeypatch.setenv(VARIABLE, sys.executable)
    assert refusal(args) == f"exporter transformers5 needs transformers 5, and {sys.executable} has transformers 4"


def test_a_process_that_ends_by_itself_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    monkeypatch.setenv(VARIABLE, str(python))
    args = ExportArgs("nothing", CLASSIFY, tmp_path / "artifact", exporter=EXPORTER)
    endings = {
        "echo happened >&2; exit 3": "ended with code 3: happened",
        "kill -9 $$": "was ended by signal 9: it said nothing",
        "echo hello": f"{python} says 'hello'; {VARIABLE} must name the Python of an environment",
    }
    for script, ended in endings.items():
        python.write_text(f"#!/bin/sh\nread request\n{script}\n")
        python.chmod(0o755)
        assert ended in refusal(args)


def test_the_environment_refuses_the_exporter_optimum(tmp_path: Path) -> None:
    installed("transformers5")
    command = [str(PYTHON), "-m", "sextet", "export", "nothing", "--task", CLASSIFY, "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("sextet: exporter optimum needs transformers 4 and Optimum")
    assert ended.stderr.count("\n") == 1


# --- side by side ---


def test_one_command_makes_the_artifacts_of_both_and_keeps_them(
    made: Path, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    known = next(one for one in EXPORTED if one.architecture == "exaone")
    exports = [
        args_of(known, made, tmp_path / "newer"),
        ExportArgs(str(checkpoint("bert", CLASSIFY)), CLASSIFY, tmp_path / "older"),
    ]

    newer, older = export_all(exports)

    assert (newer.path, older.path) == (tmp_path / "newer", tmp_path / "older")
    assert newer.manifest.versions["transformers"].startswith("5.")
    assert older.manifest.versions["transformers"].startswith("4.")
    said: list[str] = []
    before = [one.path.stat().st_ino for one in (newer, older)]
    assert [one.path.stat().st_ino for one in export_all(exports, said.append)] == before
    assert said == [f"checking {tmp_path / 'newer'}", f"checking {tmp_path / 'older'}"]


def test_a_request_to_the_hub_that_stalls_ends_there_too(tmp_path: Path) -> None:
    """The client of the Hub in that environment is another one."""
    installed("transformers5")
    code = """
import os, socket, sys
silent = socket.create_server(("127.0.0.1", 0))
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = "1"
from checkpoints import hub
from huggingface_hub.utils import _http
from pipelines.errors import CheckpointError
from stores import time_limit
time_limit.LIMIT_S = 0.2
before = _http._GLOBAL_CLIENT_FACTORY
try:
    hub.download("someone/bert", None, allow_pickle=False, progress=print)
except CheckpointError as error:
    print(error)
assert _http._GLOBAL_CLIENT_FACTORY is before
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_CACHE": str(tmp_path)}
    ended = subprocess.run(
        [str(PYTHON), "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "cannot be reached for someone/bert (timed out" in ended.stdout
