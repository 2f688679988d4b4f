"""deploy/gpu/borrow.py: an environment sees the machine's PyTorch and its CUDA, nothing else, and cannot harm them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.gpu import borrow

ROOT = Path(__file__).parents[2]
LENT = {"torch": ["torch", "torchgen"], "triton": ["triton"], "nvidia-cublas": ["nvidia"]}
OTHERS = {"transformers": ["transformers"], "onnxruntime": ["onnxruntime"]}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """An environment with packages of these names."""
    site_packages = environment(tmp_path / "machine")
    for package, modules in (LENT | OTHERS).items():
        information = site_packages / f"{package.replace('-', '_')}-9.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.0\n")
        for module in modules:
            (site_packages / module).mkdir()
            (site_packages / module / "__init__.py").touch()
        if package == "torch":
            (site_packages / "torch" / "version.py").write_text("cuda = '13.0'\n")
        files = [*(f"{module}/__init__.py" for module in modules), f"{information.name}/METADATA", "../../../bin/tool"]
        (information / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return tmp_path / "machine"


def environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    return site_packages


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(folder / "bin" / "python"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_torch_and_cuda_are_seen_and_nothing_else_is(machine: Path, tmp_path: Path) -> None:
    site_packages = environment(tmp_path / "own")
    said = run(machine, borrow.__file__, str(tmp_path / "own"))
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"torch 9.0 is that of {machine / site_packages.relative_to(tmp_path / 'own')}\n"

    program = "import importlib.util as u, sys; print(*[u.find_spec(name) is not None for name in sys.argv[1:]])"
    names = [name for modules in (LENT | OTHERS).values() for name in modules]
    assert run(tmp_path / "own", "-c", program, *names).stdout.split() == ["True"] * 4 + ["False"] * 2
    versions = "import importlib.metadata as m; print(m.version('torch'), m.version('nvidia-cublas'))"
    assert run(tmp_path / "own", "-c", versions).stdout == "9.0 9.0\n"


def test_links_to_a_torch_that_has_gone_are_made_anew(machine: Path, tmp_path: Path) -> None:
    site_packages = environment(tmp_path / "own")
    (site_packages / "torch").symlink_to(tmp_path / "gone" / "torch")
    said = run(tmp_path / "machine", borrow.__file__, str(tmp_path / "own"))
    assert (said.returncode, said.stderr) == (0, "")
    assert (site_packages / "torch" / "__init__.py").exists()


def test_a_package_without_a_name_is_not_lent(machine: Path, tmp_path: Path) -> None:
    """What is left of one that was removed by hand."""
    (site_packages,) = machine.glob("lib/python*/site-packages")
    (site_packages / "rest-1.0.dist-info").mkdir()
    environment(tmp_path / "own")
    said = run(machine, borrow.__file__, str(tmp_path / "own"))
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("cuda = None", "is built without CUDA; the runtime needs CUDA 13"),
        ("cuda = '12.8'", "is for CUDA 12.8; the runtime needs CUDA 13"),
        ("", "is built without CUDA; the runtime needs CUDA 13"),
        (None, "is not whole"),
    ],
)
def test_a_torch_for_cpus_or_for_another_cuda_is_refused(
    version: str | None, problem: str, machine: Path, tmp_path: Path
) -> None:
    """Its libraries would not load, after a minute of installing."""
    (file,) = machine.glob("lib/python*/site-packages/torch/version.py")
    file.unlink()
    if version is not None:
        file.write_text(f"{version}\n")
    site_packages = environment(tmp_path / "own")
    said = run(machine, borrow.__file__, str(tmp_path / "own"))
    assert (said.returncode, said.stdout) == (1, "")
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"borrow: PyTorch 9.0 of {machine}/bin/python {problem}")
    assert line.endswith("; name another: PYTHON=/path/to/python3")
    assert not (site_packages / "torch").exists()


def test_the_cuda_that_is_asked_for_is_that_of_the_pinned_runtime() -> None:
    lock = (ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"^nvidia-cuda-runtime==(\d+)\.", lock, re.MULTILINE)) == {borrow.CUDA}


def test_pip_cannot_remove_the_machines_files_through_the_links(machine: Path, tmp_path: Path) -> None:
    environment(tmp_path / "own")
    for _ in range(2):  # twice does no harm
        assert run(machine, borrow.__file__, str(tmp_path / "own")).returncode == 0
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(tmp_path / "own" / "bin" / "python"),
        "uninstall",
        "-y",
        "torch",
    ]
    said = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert "Cannot uninstall torch" in said.stderr
    assert len([*machine.glob("lib/python*/site-packages/torch/__init__.py")]) == 1


def test_a_python_without_torch_is_one_line(tmp_path: Path) -> None:
    environment(tmp_path / "own")
    said = run(tmp_path / "own", borrow.__file__, str(tmp_path / "own"))
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.endswith("/bin/python has no PyTorch; name another: PYTHON=/path/to/python3\n")


def test_an_environment_of_another_python_is_one_line(machine: Path, tmp_path: Path) -> None:
    environment(tmp_path / "own")
    (tmp_path / "own" / "lib" / "python3.9" / "site-packages").mkdir(parents=True)
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder, names in (("own", ", ".join(sorted(("python3.9", here)))), ("absent", "no Python")):
        said = run(machine, borrow.__file__, str(tmp_path / folder))
        assert (said.returncode, said.stdout) == (1, "")
        reason = f"{tmp_path / folder} is an environment of {names}, not of {here} alone; name a new one"
        assert said.stderr == f"borrow: {reason}\n"
