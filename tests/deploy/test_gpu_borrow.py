"""deploy/gpu/borrow.py: an environment sees the machine's PyTorch and its CUDA, nothing else, and cannot harm them."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.gpu import borrow

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
