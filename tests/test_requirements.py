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
EXTRAS = {
    "serve": ("serve",),
    "export": ("serve", "export"),
    "dev": ("dev",),
    "cpu": ("cpu",),
    "gpu": ("gpu",),
    "gpu-proof": ("serve",),
    "transformers5": ("transformers5",),
}
"""The extras of pyproject.toml that each lock holds."""
RUNTIMES = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu", "gpu-proof": "onnxruntime-gpu"}
"""The locks that hold a runtime. The others are installed beside cpu.lock or gpu.lock."""


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


@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_holds_one_runtime_or_none(lock: str) -> None:
    """Two would overwrite each other's files."""
    assert {"onnxruntime", "onnxruntime-gpu"} & pins(lock).keys() == {*filter(None, [RUNTIMES.get(lock)])}


def test_a_runtime_may_be_installed_beside_each_lock() -> None:
    """Its lock names packages that the others name, too, in the same versions."""
    for runtime in ("cpu", "gpu"):
        for lock in ("serve", "export", "dev"):
            shared = pins(runtime).keys() & pins(lock).keys()
            assert {name: pins(runtime)[name] for name in shared} == {name: pins(lock)[name] for name in shared}


def test_the_two_runtimes_have_one_version() -> None:
    """An artifact that one of them made is then current for the other."""
    assert pins("cpu")["onnxruntime"] == pins("gpu")["onnxruntime-gpu"] == pins("gpu-proof")["onnxruntime-gpu"]


def test_the_two_runtimes_are_known_to_exclude_each_other() -> None:
    assert project()["tool"]["uv"]["conflicts"][0] == [{"extra": "cpu"}, {"extra": "gpu"}]
    for extra in project()["project"]["optional-dependencies"].keys() - {"cpu", "gpu"}:
        assert not {"onnxruntime", "onnxruntime-gpu"} & {requirement.name for requirement in asked(extra)}


def test_the_two_generations_of_transformers_are_known_to_exclude_each_other() -> None:
    exclusive = [{one["extra"] for one in group} for group in project()["tool"]["uv"]["conflicts"]]
    assert {"export", "transformers5"} in exclusive
    assert pins("export")["transformers"] == {"4.57.6"}
    assert {version.partition(".")[0] for version in pins("transformers5")["transformers"]} == {"5"}
    assert not {"optimum", "optimum-onnx"} & pins("transformers5").keys()


def test_the_runtime_for_gpus_brings_the_libraries_of_cuda_and_cudnn() -> None:
    """Those that its execution provider is linked with or loads."""
    needed = {"nvidia-cuda-runtime", "nvidia-cublas", "nvidia-curand", "nvidia-cufft", "nvidia-cudnn-cu13"}
    assert needed <= pins("gpu").keys()
    assert not {name for name in pins("cpu") if name.startswith("nvidia-")}


def test_the_proof_on_a_gpu_installs_the_versions_of_the_other_locks_for_one_platform() -> None:
    wanted = [Requirement(line) for line in lines_of("gpu-proof.in")]
    assert not [str(one) for one in wanted if not fits(one, pins("gpu-proof").get(canonicalize_name(one.name)))]
    others = {name: pins("dev").get(name, set()) | pins("gpu").get(name, set()) for name in pins("gpu-proof")}
    assert {name: versions for name, versions in pins("gpu-proof").items() if not versions <= others[name]} == {}
    # No markers: pip would evaluate them for the Python that downloads.
    assert not [entry for entry in entries("gpu-proof") if ";" in entry]


def test_the_bill_of_materials_is_made_by_the_versions_of_the_tests() -> None:
    wanted = [Requirement(line) for line in lines_of("sbom.in")]
    assert not [str(one) for one in wanted if not fits(one, pins("sbom").get(canonicalize_name(one.name)))]
    assert {name: pins("dev").get(name) for name in pins("sbom")} == pins("sbom")


def test_kserves_client_is_pinned_in_the_version_that_pages_name() -> None:
    (wanted,) = (Requirement(line) for line in lines_of("kserve.in"))
    assert fits(wanted, pins("kserve").get(wanted.name))
    (version,) = pins("kserve")["kserve"]
    assert f"kserve {version})" in (ROOT / "docs" / "http_api.md").read_text(encoding="utf-8")


def test_pages_name_the_runtime_for_gpus_in_the_version_that_is_pinned() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    named = {version for page in pages for version in re.findall(r"onnxruntime-gpu==([\d.]*\d)", page)}
    assert named == pins("gpu")["onnxruntime-gpu"]


def lines_of(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", ["serve", "cpu", "gpu"])
def test_serving_installs_no_framework(lock: str) -> None:
    assert not {"torch", "transformers", "optimum", "onnx", "accelerate"} & pins(lock).keys()


def test_the_proof_on_a_gpu_takes_torch_and_cuda_from_the_machine() -> None:
    assert not {name for name in pins("gpu-proof") if name.startswith(("nvidia-", "triton", "torch"))}


@pytest.mark.parametrize("lock", [*EXTRAS, "sbom", "kserve"])
def test_every_package_has_hashes_and_none_has_a_place(lock: str) -> None:
    assert len(entries(lock)) == sum(len(versions) for versions in pins(lock).values())
    assert all("--hash=sha256:" in entry for entry in entries(lock))
    assert not re.search(r"://|--(index|extra-index|find-links)|^-e|file:|@", text_of(lock), re.MULTILINE)


def entries(lock: str) -> list[str]:
    """Each requirement with its hashes."""
    return re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text_of(lock), flags=re.MULTILINE).strip())


def test_torch_is_pinned_once_for_all() -> None:
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "requirements" / "torch.txt").read_text(), re.MULTILINE)
    wanted, other = (
        requirement
        for extra in ("export", "transformers5")
        for requirement in asked(extra)
        if requirement.name == "torch"
    )
    assert wanted == other
    (described,) = [one for one in project()["tool"]["uv"]["dependency-metadata"] if one["name"] == "torch"]
    assert str(wanted.specifier) == f"=={pinned}"
    assert described["version"] == pinned
    for line in described["requires-dist"]:
        assert fits(Requirement(line), pins("export").get(canonicalize_name(Requirement(line).name)))
