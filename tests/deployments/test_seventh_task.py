"""A seventh task: one file of another package, found through its entry point; no product code names it.

The package is a folder on PYTHONPATH: language_identification.py and the metadata that an installation would write.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipelines.tasks import ENTRY_POINTS, TASKS
from tests.cluster.serving import SHIPPED, Serving, clean_environment

NAME = "language-identification"
MODULE = Path(__file__).parent / "language_identification.py"
LANGUAGES = ["en", "fr", "ko"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    shutil.copy(MODULE, folder)
    metadata = folder / "language_identification-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: language-identification\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{NAME} = language_identification:TASK\n")
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Callable[..., Path], package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of languages, exported for the seventh task."""
    labels = dict(enumerate(LANGUAGES))
    source = checkpoint("bert", "text-classification", id2label=labels)
    output = tmp_path_factory.mktemp("artifact") / NAME
    run(package, "-m", "sextet", "export", str(source), "--task", NAME, "--output", str(output))
    return output


@pytest.fixture(scope="module")
def served(artifact: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The shipped cluster.yaml, with the application of its first task as the seventh task's, and the gateway."""
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    first, *_, gateway = content["applications"]
    assert gateway["name"] == "gateway"
    first |= {"name": NAME, "route_prefix": f"/{NAME}", "args": {"task": NAME}}
    (deployment,) = first["deployments"]
    deployment["name"] = NAME
    deployment["user_config"] = {"model": str(artifact), "threads": 1}
    path = tmp_path_factory.mktemp("cluster") / "cluster.yaml"
    path.write_text(yaml.safe_dump(content | {"applications": [first, gateway]}), encoding="utf-8")
    serving = Serving.start(path, PYTHONPATH=str(package))
    try:
        yield serving.wait_until_ready()
        assert serving.stop() == 0, "\n".join(serving.lines)
    finally:
        serving.process.kill()


def run(package: Path, *arguments: str) -> str:
    """What Python prints where the package is installed."""
    environment = clean_environment() | {"PYTHONPATH": str(package), "COLUMNS": "500"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_process(package: Path, expression: str) -> Any:
    return json.loads(run(package, "-c", f"import json; print(json.dumps({expression}))"))


def test_an_installed_package_registers_its_task(package: Path) -> None:
    assert in_process(package, "list(__import__('pipelines.tasks').tasks.TASKS)") == [*TASKS, NAME]
    assert NAME not in TASKS


def test_python_answers_without_a_server(package: Path, artifact: Path) -> None:
    (best, *others) = in_process(package, f"__import__('pipelines').load({str(artifact)!r})('Où est la gare ?')")

    assert {best["language"], *(one["language"] for one in others)} == set(LANGUAGES)
    assert best["score"] >= others[0]["score"]


def test_the_command_line_names_it(package: Path) -> None:
    for command in (["ask"], ["export"], ["finetune"], ["bench", "offline"]):
        assert NAME in run(package, "-m", "sextet", *command, "--help")


def test_the_api_document_describes_it(package: Path) -> None:
    document = in_process(package, "__import__('deployments.openapi').openapi.document('1')")

    body = document["paths"][f"/{NAME}"]["post"]["requestBody"]["content"]["application/json"]
    assert body["example"]["inputs"] == "Where is the train station?"
    assert '"least_score"' in json.dumps(document)


@pytest.mark.cluster
def test_the_demonstration_asks_it(served: Serving) -> None:
    served.wait_for("  -> ")
    at = served.lines.index(NAME)

    assert served.lines[at + 1] == "  Where is the train station?"
    assert served.lines[at + 2].startswith(("  -> en (", "  -> fr (", "  -> ko ("))


@pytest.mark.cluster
def test_it_answers_over_http(served: Serving) -> None:
    one = httpx.post(f"{served.url}/{NAME}", json={"inputs": "안녕하세요"}).json()
    two = httpx.post(f"{served.url}/{NAME}", json={"inputs": ["a", "b"], "parameters": {"least_score": 0.9}}).json()
    refused = httpx.post(f"{served.url}/{NAME}", json={"inputs": "a", "parameters": {"least_score": 2}})

    assert sorted(answer["language"] for answer in one) == LANGUAGES
    assert [len(answers) <= 1 for answers in two] == [True, True]
    assert refused.status_code == 400
    assert "parameters.least_score is 2; allowed: " in refused.json()["error"]


@pytest.mark.cluster
def test_the_open_inference_protocol_answers_for_it(served: Serving) -> None:
    tensor = {"name": "args", "datatype": "BYTES", "shape": [1], "data": ["a text"]}
    answer = httpx.post(f"{served.url}/v2/models/{NAME}/infer", json={"inputs": [tensor]}, follow_redirects=True)

    assert answer.status_code == 200
    assert sorted(one["language"] for one in json.loads(answer.json()["outputs"][0]["data"][0])) == LANGUAGES


@pytest.mark.cluster
def test_the_gateway_lists_it_and_the_console_shows_it(served: Serving) -> None:
    (listed,) = httpx.get(served.url).json()["tasks"]
    (*_, shown) = httpx.get(f"{served.url}/console/tasks.json").json()

    assert (listed["task"], listed["ready"], listed["model"]["labels"]) == (NAME, True, LANGUAGES)
    assert (shown["name"], shown["title"]["ko"]) == (NAME, "언어 식별")
    (form,) = shown["forms"]
    assert [(one["name"], one["kind"]) for one in form["parameters"]] == [("least_score", "number")]
    assert "/" + NAME in httpx.get(f"{served.url}/nowhere").json()["error"]


@pytest.mark.cluster
def test_the_served_document_describes_it(served: Serving) -> None:
    assert f"/{NAME}" in httpx.get(f"{served.url}/openapi.json").json()["paths"]


@pytest.mark.cluster
def test_the_terminal_asks_it(served: Serving, package: Path) -> None:
    answer = json.loads(run(package, "-m", "sextet", "ask", NAME, "Bonjour", "--url", served.url))

    assert sorted(one["language"] for one in answer) == LANGUAGES
