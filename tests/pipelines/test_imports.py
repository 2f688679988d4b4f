"""Who may import whom, and what serving a model must not load."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Imports go down only: training -> evaluation -> export -> checkpoints -> stores -> pipelines, and deployments and
# benchmarks beside them. benchmarks asks servers over HTTP; pipelines is its in-process reference, and deployments
# reads and cuts down the cluster.yaml that is measured. batch reads the files that evaluation reads.
# planning simulates what deployments does, and draws as benchmarks does.
ALLOWED: dict[str, tuple[str, ...]] = {
    "pipelines": (),
    "stores": ("pipelines",),
    "checkpoints": ("pipelines", "stores"),
    "export": ("pipelines", "stores", "checkpoints"),
    "evaluation": ("pipelines", "stores", "checkpoints", "export"),
    "training": ("pipelines", "stores", "checkpoints", "export", "evaluation"),
    "deployments": ("pipelines", "stores"),
    "batch": ("pipelines", "stores", "evaluation", "deployments"),
    "benchmarks": ("pipelines", "deployments"),
    "planning": ("pipelines", "stores", "deployments", "benchmarks"),
}
PACKAGES = tuple(ALLOWED)
LAYERS_OF_PIPELINES = ("tasks", "scheduling", "generation", "runtime", "schema", "misfit", "errors")
THIRD_PARTY_OF_PIPELINES = {"numpy", "tokenizers", "onnxruntime", "msgspec"}
HEAVY = ("torch", "transformers", "ray", "optimum", "huggingface_hub", "onnx", "starlette", "fastapi")


def imported_names(source: str) -> Iterator[str]:
    """Every absolute module name that a source imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield node.module or ""


def imported_modules(source: str) -> Iterator[str]:
    """Every name that a source may mean as a module: `from a import b` is `a` and perhaps `a.b`."""
    yield from imported_names(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_parser_sees_imports_wherever_they_stand() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g as h\nif True:\n    from i import j\n"
    assert sorted(imported_names(source)) == ["a.b", "c.d", "g", "i"]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_the_allowed_direction_only(package: str) -> None:
    assert sources(package), f"no sources in {package}"
    for path in sources(package):
        for name in imported_names(path.read_text(encoding="utf-8")):
            top = name.split(".")[0]
            forbidden = top in PACKAGES and top not in (package, *ALLOWED[package])
            assert not forbidden, f"{path.relative_to(ROOT)} imports {name}"
            assert top != "tests", f"{path.relative_to(ROOT)} imports the tests"


@pytest.mark.parametrize("layer", LAYERS_OF_PIPELINES)
def test_layers_of_pipelines_import_down_only(layer: str) -> None:
    above = LAYERS_OF_PIPELINES[: LAYERS_OF_PIPELINES.index(layer)]
    files = [path for path in sources("pipelines") if module_of(path).split(".")[1:2] == [layer]]
    assert files, f"no files in pipelines.{layer}"
    for path in files:
        for name in imported_modules(path.read_text(encoding="utf-8")):
            package, *inside = name.split(".")
            upward = package == "pipelines" and inside[:1] != [] and inside[0] in above
            assert not upward, f"{path.relative_to(ROOT)} imports {name}"


def test_every_file_of_pipelines_is_in_a_layer() -> None:
    parts = {module_of(path).split(".")[1] for path in sources("pipelines") if module_of(path) != "pipelines"}
    assert parts == set(LAYERS_OF_PIPELINES)


def test_no_files_import_each_other_in_a_circle() -> None:
    """All product files, with imports inside functions."""
    tracked = [path for package in (*PACKAGES, "starter") for path in sources(package)] + [ROOT / "sextet.py"]
    modules = {module_of(path): path for path in tracked}
    graph = {
        module: {name for name in imported_modules(path.read_text(encoding="utf-8")) if name in modules} - {module}
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " <- ".join(error.args[1]))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_a_circle_is_found_wherever_its_imports_stand() -> None:
    sources = {"a": "from b import c", "b.c": "def f():\n    import a\n"}
    graph = {module: set(imported_modules(source)) & sources.keys() for module, source in sources.items()}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_pipelines_are_built_on_numpy_tokenizers_onnxruntime_and_msgspec_alone() -> None:
    allowed = THIRD_PARTY_OF_PIPELINES | {"pipelines"} | set(sys.stdlib_module_names)
    for path in sources("pipelines"):
        for name in imported_names(path.read_text(encoding="utf-8")):
            assert name.split(".")[0] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("text-classification", "Anna Smith"),
        ("question-answering", {"question": "Who?", "context": "Anna Smith"}),
        ("token-classification", "Anna Smith"),
    ],
)
def test_loading_and_running_a_pipeline_loads_no_framework(
    task: str, given: object, exported: Callable[..., Path]
) -> None:
    program = (
        "import json, sys, pipelines\n"
        "path, given, heavy = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])\n"
        "assert pipelines.load(path)(given) is not None\n"
        "print(sorted(name for name in heavy if name in sys.modules))\n"
    )
    arguments = [str(exported("bert", task)), json.dumps(given), json.dumps(HEAVY)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
