"""ONNX Runtime has two packages that install into one folder: one line says that none, both or a rest is there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from pipelines.errors import ConfigurationError
from pipelines.runtime.package import SOURCE_TREE, install_command, runtime_package

FOLDER = Path(onnxruntime.__file__).parent


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`site_packages(*packages)`: a folder that comes first on the path, with the metadata of these packages."""

    def make(*packages: str, module: Path | None = FOLDER) -> Path:
        for package in packages:
            metadata = tmp_path / f"{package.replace('-', '_')}-9.0.dist-info" / "METADATA"
            metadata.parent.mkdir()
            metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.0\n")
        if module is not None:
            (tmp_path / "onnxruntime").symlink_to(module)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return make


def test_the_environment_of_the_tests_has_one_package_of_the_version_that_is_imported() -> None:
    assert runtime_package()[1] == onnxruntime.__version__


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
def test_the_package_is_the_one_of_the_folder_that_is_imported(
    site_packages: Callable[..., Path], package: str
) -> None:
    """Not the one of another environment further down the path."""
    site_packages(package)
    assert runtime_package() == (package, "9.0")


def test_a_build_of_ones_own_has_the_version_that_it_says(site_packages: Callable[..., Path]) -> None:
    site_packages()
    assert runtime_package() == ("onnxruntime", onnxruntime.__version__)


def test_a_rest_that_uninstalling_the_other_package_left_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site_packages: Callable[..., Path]
) -> None:
    (rest := tmp_path / "rest").mkdir()
    site_packages("onnxruntime-gpu", module=rest)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigurationError, match=r"^onnxruntime-gpu 9\.0 lacks files, .*; pip uninstall -y"):
        runtime_package()


def test_no_runtime_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigurationError) as refused:
        runtime_package()
    assert str(refused.value) == (
        f"ONNX Runtime is not installed; pip install -e '{SOURCE_TREE}[serve,cpu]' or, for GPUs, pip install -e "
        f"'{SOURCE_TREE}[serve,gpu]'"
    )


def test_a_remedy_installs_the_source_tree_where_there_is_one_and_else_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install_command("serve") == f"pip install -e '{SOURCE_TREE}[serve]'"
    assert (SOURCE_TREE / "pyproject.toml").is_file()
    monkeypatch.setattr("pipelines.runtime.package.SOURCE_TREE", tmp_path)
    assert install_command("serve,gpu") == "pip install 'sextet[serve,gpu]'"


def test_two_packages_in_one_folder_are_one_line_before_a_model_is_loaded(
    exported: Callable[..., Path], site_packages: Callable[..., Path]
) -> None:
    load = f"lambda: pipelines.load({str(exported('bert', 'text-classification'))!r})"
    program = f"import pipelines, sextet; sextet.app.command('load')({load}); sextet.main(['load'])"
    assert failure("-c", program, packages=site_packages("onnxruntime", "onnxruntime-gpu")) == (
        "sextet: onnxruntime 9.0 and onnxruntime-gpu 9.0 overwrite each other's files; pip uninstall -y onnxruntime "
        f"onnxruntime-gpu, then pip install -e '{SOURCE_TREE}[serve,cpu]' or, for GPUs, pip install -e "
        f"'{SOURCE_TREE}[serve,gpu]'"
    )


def test_two_packages_in_one_folder_are_one_line_before_an_export(
    checkpoint: Callable[..., Path], site_packages: Callable[..., Path], tmp_path: Path
) -> None:
    source, task = str(checkpoint("bert", "text-classification")), "text-classification"
    export = ["-m", "sextet", "export", source, "--task", task, "--output", str(tmp_path / "out")]
    line = failure(*export, packages=site_packages("onnxruntime", "onnxruntime-gpu"))
    assert line.startswith("sextet: onnxruntime 9.0 and onnxruntime-gpu 9.0 overwrite each other's files; ")


def failure(*arguments: str, packages: Path) -> str:
    """What a Python with these packages first on its path says, as it ends with exit code 1."""
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr.removesuffix("\n")
