"""The house: what docs/architecture.md says of folders, files and names holds for the whole product.

Who may import whom is in tests/pipelines/test_imports.py.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "pipelines",
    "stores",
    "checkpoints",
    "export",
    "evaluation",
    "training",
    "deployments",
    "batch",
    "benchmarks",
    "planning",
    "starter",
)
TASKS = [
    application["name"]
    for application in yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))["applications"]
    if application["name"] != "gateway"
]
MAX_FILES = 14
MAX_LINES = 400


@cache
def modules() -> dict[str, Path]:
    """The product's modules by their dotted name."""
    files = [ROOT / "sextet.py", *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))]
    named = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in named.items()}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_a_folder_can_be_read_at_a_glance() -> None:
    names = ("*.py", "*.js", "*.css", "*.html")
    files = [file for room in ROOMS for name in names for file in (ROOT / room).rglob(name)]
    held = Counter(file.parent.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py")
    assert {folder: n for folder, n in held.items() if n > MAX_FILES} == {}


def test_files_are_nouns_of_a_middling_size(record_property: Callable[[str, object], None]) -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules().items()}
    written = [n for n in lengths.values() if n > 0]  # an empty __init__.py is no file to read
    record_property("median_lines", median(written))
    print(f"{len(written)} files, {sum(written)} lines, median {median(written):.0f}")  # shown by -s
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_a_task_is_named_in_its_own_file_only() -> None:
    named = [*literals_of_python(), *literals_of_the_console()]
    assert named == [], f"{len(named)} names of tasks outside their own files:\n" + "\n".join(named)


def literals_of_python() -> Iterator[str]:
    for module, file in modules().items():
        nodes = list(ast.walk(tree(file)))
        documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documentation:
                continue
            for task in TASKS:
                own = module == f"pipelines.tasks.{task.replace('-', '_')}"
                if not own and names(node.value, task):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}: {task}"


def literals_of_the_console() -> Iterator[str]:
    for file in sorted((ROOT / "deployments" / "console").glob("*.js")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            yield from (
                f"{file.relative_to(ROOT)}:{number}: {task}" for task in TASKS if re.search(rf"[\"'`/]{task}\b", line)
            )


def names(text: str, task: str) -> bool:
    """Whether a string literal is the name, or has it inside; two of the names are words that any sentence may hold."""
    if "-" not in task:
        return text.strip("/") == task
    return re.search(rf"(?<![\w-]){task}(?![\w-])", text) is not None
