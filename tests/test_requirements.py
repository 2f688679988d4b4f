"""The locks are in step with pyproject.toml, and say nothing of the machine that wrote them."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"serve": ("serve",), "export": ("serve", "export"), "dev": ("dev",)}
"""The extras of pyproject.toml that each lock holds."""


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text_of(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")


@cache
def pins(lock: str) -> dict[str, set[str]]:
    """The versions of each package: two where older Pythons need another one."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", text_of(lock), re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def asked(*extras: str) -> list[Requirement]:
    """What the project and its extras ask for, extras of its own followed."""
    lines: list[str] = list(project()["project"]["dependencies"])
    waiting, seen = list(extras), set[str]()
    while waiting:
        if (extra := waiting.pop()) in seen:
            continue
        seen.add(extra)
        for line in project()["project"]["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if requirement.name == "sextet":
                waiting.extend(requirement.extras)
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_pins_what_the_project_asks_for(lock: str) -> None:
    wrong = [
        str(requirement)
        for requirement in asked(*EXTRAS[lock])
        if requirement.name != "torch" and not fits(requirement, pins(lock).get(canonicalize_name(requirement.name)))
    ]
    assert wrong == [], "run `make lock`"


def fits(requirement: Requirement, versions: set[str] | None) -> bool:
    return bool(versions) and all(requirement.specifier.contains(version) for version in versions or ())


def test_the_smaller_locks_are_parts_of_the_larger_ones() -> None:
    for smaller, larger in (("serve", "export"), ("export", "dev")):
        assert {name: pins(larger).get(name) for name in pins(smaller)} == pins(smaller)


def test_serving_installs_no_framework() -> None:
    assert not {"torch", "transformers", "optimum", "onnx", "accelerate"} & pins("serve").keys()


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_package_has_hashes_and_none_has_a_place(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text_of(lock), flags=re.MULTILINE).strip())
    assert len(entries) == sum(len(versions) for versions in pins(lock).values())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|--(index|extra-index|find-links)|^-e|file:|@", text_of(lock), re.MULTILINE)


def test_torch_is_pinned_once_for_all() -> None:
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "requirements" / "torch.txt").read_text(), re.MULTILINE)
    (wanted,) = [requirement for requirement in asked("export") if requirement.name == "torch"]
    (described,) = [one for one in project()["tool"]["uv"]["dependency-metadata"] if one["name"] == "torch"]
    assert str(wanted.specifier) == f"=={pinned}"
    assert described["version"] == pinned
    for line in described["requires-dist"]:
        assert fits(Requirement(line), pins("export").get(canonicalize_name(Requirement(line).name)))
