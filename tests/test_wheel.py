"""The wheel, outside of the source tree: what `pip install sextet` gives exports a starter, loads and serves it."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.cluster.ray_environment import spare_port
from tests.cluster.serving import Serving, clean_environment, write_cluster

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = (
    ".*",
    "tests",
    "models",
    "runs",
    "build",
    "dist",
    "wheels",
    "docs",
    "results",
    "*.egg-info",
    "__pycache__",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools writes beside its sources, with the setuptools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run(wheel: Path) -> Callable[..., str]:
    """`run("sextet", "--help")`: what a command prints, of an environment that has the wheel and borrows the rest."""
    environment = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip("--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # The folder alone: what its own .pth files add, such as the source tree, is not read.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    elsewhere = wheel.parent / "elsewhere"
    elsewhere.mkdir()

    def command(program: str, *arguments: str) -> str:
        finished = subprocess.run(
            [str(environment / "bin" / program), *arguments],
            cwd=elsewhere,
            env=outside(wheel.parent),
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return command


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def outside(folder: Path) -> dict[str, str]:
    """An environment that knows neither the source tree nor what was made before."""
    kept = {name: value for name, value in clean_environment().items() if not name.startswith("PYTHON")}
    return kept | {"SEXTET_CACHE": str(folder / "cache")}


def test_it_has_every_package_with_its_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    modules = {file.relative_to(ROOT).as_posix() for package in packages for file in (ROOT / package).rglob("*.py")}
    console = {f"deployments/console/{name}" for name in ("index.html", "console.css", "console.js")}
    starters = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "starter").glob("*/*")
        if file.is_file() and file.parent.name != "__pycache__"
    }
    services = {name for name in modules if name.startswith("benchmarks/peers/services/")}

    assert modules - services - held == set()
    assert console | starters | {f"{package}/py.typed" for package in packages} <= held
    assert not {name for name in held if name.startswith(("tests/", "docs/"))}


def test_its_command_and_its_packages_are_found_outside_of_the_source_tree(
    run: Callable[..., str], exported: Callable[..., Path]
) -> None:
    assert "export" in run("sextet", "--help")
    assert run("sextet", "--version").startswith("sextet ")
    program = "import pipelines, sys; print(pipelines.__file__); print(pipelines.load(sys.argv[1])(['good', 'bad']))"
    place, answers = run("python", "-c", program, str(exported("bert", "text-classification"))).splitlines()

    assert Path(place).parents[1].name == "site-packages"
    assert answers.count("label") == 2


@pytest.mark.cluster
def test_it_exports_a_starter_and_serves_it(run: Callable[..., str], wheel: Path) -> None:
    elsewhere = wheel.parent / "elsewhere"
    run("sextet", "export", "starter:translation-en-fr", "--task", "translation", "--output", "translator")
    load = "import pipelines; print(pipelines.load('translator')('Where is the train station?')[0])"
    assert "gare" in run("python", "-c", load)

    cluster = write_cluster(elsewhere, {"translation": elsewhere / "translator"})
    port = spare_port()
    program = [str(wheel.parent / "environment" / "bin" / "sextet"), "serve", str(cluster), "--port", str(port)]
    serving = Serving(
        subprocess.Popen(
            program,
            cwd=elsewhere,
            env=outside(wheel.parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ),
        f"http://127.0.0.1:{port}",
    )
    try:
        serving.wait_until_ready()
        assert "gare" in run("sextet", "ask", "translation", "Where is the train station?", "--url", serving.url)
        assert serving.stop() == 0, "\n".join(serving.lines)
    finally:
        serving.process.kill()
