"""A version that is ready for a tag: one number, in every place that names it."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

import sextet

ROOT = Path(__file__).resolve().parent.parent
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
IMAGES = ("deploy/Dockerfile", "deploy/ray-up.yaml", "docs/nodes.md")


def test_the_command_line_says_the_version_of_what_is_installed() -> None:
    printed = CliRunner().invoke(sextet.app, ["--version"])

    assert (printed.exit_code, printed.output) == (0, f"sextet {VERSION}\n")
    assert version("sextet") == VERSION


def test_the_changelog_begins_with_it() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert headings[:2] == ["Unreleased", VERSION]


def test_the_images_of_several_machines_have_it() -> None:
    named = [tag for name in IMAGES for tag in re.findall(r"/sextet:([\w.]+)", (ROOT / name).read_text())]
    kustomization = (ROOT / "deploy" / "kuberay" / "base" / "kustomization.yaml").read_text()

    assert set(named) == {VERSION}
    assert f"newTag: {VERSION}" in kustomization


def test_every_package_is_typed_for_whoever_installs_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = [name.removesuffix("*") for name in settings["packages"]["find"]["include"]]

    assert [name for name in packages if not (ROOT / name / "py.typed").is_file()] == []
