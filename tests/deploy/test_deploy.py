"""The files under deploy/, by the tools that read them; what needs a registry or Kubernetes is not tried here."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.ray_node import printed_environment
from tests.cluster.serving import clean_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def loaded(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("runtime", ["cpu", "gpu"])
def test_the_image_installs_the_locks_and_the_extra_of_its_runtime(runtime: str, tmp_path: Path) -> None:
    """What the shell gives pip: locks that exist, with one runtime, in a layer before the source; extras that exist."""
    stage = re.split(r"^FROM .*", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)[2]
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", stage, re.MULTILINE))
    locked, installed = re.findall(r"^RUN (pip install (?:.*\\\n)*.*)", stage, re.MULTILINE)
    assert stage.index("COPY requirements ") < stage.index(locked) < stage.index("COPY . .") < stage.index(installed)
    stubs = "pip() { printf '%s\\n' \"$@\"; }\npython() { :; }"
    shell = ["bash", "-euc", f"{stubs}\n{locked}\n{installed}"]
    given = subprocess.run(
        shell, env={**defaults, "RUNTIME": runtime}, capture_output=True, text=True, check=True
    ).stdout.split()
    locks = [given[index + 1] for index, one in enumerate(given) if one == "-r"]
    assert locks == ["requirements/serve.lock", f"requirements/{runtime}.lock"]
    assert all((ROOT / lock).is_file() for lock in locks)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = re.fullmatch(r"\.\[(.*)\]", given[-1])
    assert asked is not None
    assert asked[1].split(",") == ["serve", runtime]
    assert {*asked[1].split(",")} <= extras.keys()
    assert defaults["RUNTIME"] == "cpu"


def test_the_bill_of_materials_names_what_is_installed_with_its_licence(tmp_path: Path) -> None:
    """As the Dockerfile makes it, of this environment."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (made,) = re.findall(r"/sbom/bin/(cyclonedx-py environment .*)$", text, re.MULTILINE)
    command = made.replace("/sbom/", f"{tmp_path}/").replace('"$(command -v python)"', sys.executable)
    subprocess.run(f"{Path(sys.executable).parent}/{command}", shell=True, check=True, capture_output=True)
    bill = json.loads((tmp_path / "sextet.cdx.json").read_text(encoding="utf-8"))
    found = {one["name"]: one for one in bill["components"]}

    assert bill["bomFormat"] == "CycloneDX"
    for name in ("ray", "onnxruntime", "tokenizers", "msgspec"):
        assert found[name]["version"] == version(name)
        assert found[name]["purl"].startswith(f"pkg:pypi/{name}@")
    # As their metadata declare them; that of Ray is no name that SPDX knows.
    assert all(found[name]["licenses"] for name in ("onnxruntime", "tokenizers", "msgspec"))


def test_rays_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(loaded("ray-up.yaml"))
    validate_config(prepared)
    assert prepared["max_workers"] == len(loaded("ray-up.yaml")["provider"]["worker_ips"])


def test_rays_launcher_takes_the_image_for_workers_with_gpus() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (DEPLOY / "ray-up.yaml").read_text(encoding="utf-8").replace("# worker_image:", "worker_image:")
    prepared = prepare_config(yaml.safe_load(text))
    validate_config(prepared)
    assert prepared["docker"]["worker_image"] == f"{prepared['docker']['image']}-gpu"


def test_every_cluster_that_is_deployed_asks_for_a_token() -> None:
    """Without one, whoever reaches the dashboard of a head runs code on every node; KubeRay: test_kuberay.py."""
    launched = loaded("ray-up.yaml")
    assert launched["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for step in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert '. "$BASH_ENV" && ray start' in launched[step][-1]


def test_a_shell_of_the_image_finds_rays_environment_and_a_haproxy_that_runs(tmp_path: Path) -> None:
    """As the Dockerfile and KubeRay do it: printed into the file that BASH_ENV names, read by `bash -c`."""
    printed = tmp_path / "environment.sh"
    printed.write_text(printed_environment(tmp_path / "haproxy"), encoding="utf-8")
    shell = ["bash", "-c", 'echo "$RAY_SERVE_ENABLE_HA_PROXY"; "$RAY_SERVE_HAPROXY_BINARY_PATH" -v']
    said = subprocess.run(
        shell, env=clean_environment() | {"BASH_ENV": str(printed)}, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("1\nHAProxy version")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "sextet", "environment", "--folder", str(tmp_path / "file" / "haproxy")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stdout == ""
    assert said.stderr.splitlines()[-1] == (
        f"sextet: cannot write {tmp_path}/file/haproxy (Not a directory); name another --folder"
    )
