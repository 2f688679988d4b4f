"""Pages name only what exists: files, links, `make` targets, commands, options, keys of user_config, metrics."""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
import yaml

import sextet
from deployments.config import LimitsConfig, TaskConfig
from deployments.ingress.config import GATEWAY, IngressConfig
from deployments.observability.metrics import NO_PROTOCOL
from deployments.protocols.protocol import modules
from pipelines.generation.slots.config import SlotsConfig
from pipelines.scheduling.scheduler import BatchingConfig, QueueConfig
from pipelines.tasks import TASKS
from training.recipe import FinetuneArgs

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = [*PAGES, ROOT / "cluster.yaml", ROOT / "cluster.hub.yaml", ROOT / "Makefile", *(ROOT / "deploy").rglob("*.*")]
READMES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md")]
ROOMS = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()} | {"docs", "deploy", ".ci"}
FILES = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
FILES += [path.name for path in ROOT.iterdir()]
MADE = re.compile(r"deploy/kuberay/base/cluster\.yaml|benchmarks/results/gpu\.json|(.*/)?[A-Z]+\.(py|txt)")
"""What a command of the page makes, and files of any name, such as TASK.py."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
every_text = pytest.mark.parametrize("page", TEXTS, ids=name_of)


def blocks(text: str) -> Iterator[str]:
    """Code of a page: fenced blocks, indented blocks, and what stands in backticks within a line."""
    yield from re.findall(r"^```\w*[^\n]*\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"(?:^ {4}.*\n)+", prose, re.M)
    yield from (" ".join(one.split()) for one in re.findall(r"`([^`]+)`", prose))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `sextet ...` of a page, without comments; lines that end in a backslash go on."""
    for block in blocks(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||\(|\)", line.split(" #")[0]):
                try:
                    words = shlex.split(re.split(r" {3,}", part.strip())[0])
                except ValueError:  # an apostrophe: prose
                    continue
                if "sextet" in words:
                    yield words[words.index("sextet") + 1 :]


@every_text
def test_a_page_names_only_files_that_exist(page: Path) -> None:
    text = re.sub(r"\w+://\S+|\]\([^)]+\)", "", page.read_text(encoding="utf-8"))  # links have a test of their own
    named = set(re.findall(r"(?<![\w~$/.-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|js|toml|lock|yaml|json|txt))\b", text))
    ours = {one for one in named if one.endswith(".py") or one.split("/")[0] in ROOMS}
    unknown = {one for one in ours if not any(f"/{file}".endswith(f"/{one}") for file in FILES)}
    assert {one for one in unknown if not MADE.fullmatch(one)} == set()


@every_text
def test_a_page_names_only_folders_that_exist(page: Path) -> None:
    named = re.findall(r"(?<![\w~$/.:-])((?:[\w-]+/)+)(?![\w{<*.$])", page.read_text(encoding="utf-8"))
    assert {one for one in named if one.split("/")[0] in ROOMS and not (ROOT / one).is_dir()} == set()


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings], target


@every_page
def test_a_page_names_only_targets_of_make_that_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    code = "\n".join(blocks(page.read_text(encoding="utf-8")))
    assert set(re.findall(r"(?:^|&& | {4})make +([a-z][\w-]*)", code, re.M)) <= set(targets)


@every_page
def test_a_page_names_only_commands_and_options_that_exist(page: Path) -> None:
    group: Any = typer.main.get_command(sextet.app)
    recipe = {one.name for one in fields(FinetuneArgs)}
    for words in commands(page):
        if not words or not re.fullmatch(r"[a-z-]+", words[0]) or page.name == "CHANGELOG.md":
            continue
        command, rest = group, words
        while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
            if rest[0].isupper() or rest[0] == "...":
                break
            assert rest[0] in command.commands, " ".join(words)
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for option in (one.split("=")[0] for one in rest if one.startswith("--")):
            of_recipe = command.name == "finetune" and (option[2:].split(".")[0] in recipe or "_" in option)
            assert option in options or of_recipe, f"{option} of {' '.join(words)}"


def nested() -> dict[str, set[str]]:
    """The keys of `user_config`, and of each mapping in it."""
    found = {"": {one.name for one in fields(TaskConfig)}}
    for name, hint in get_type_hints(TaskConfig).items():
        for kind in (hint, *get_args(hint)):
            if is_dataclass(kind):
                found[name] = {one.name for one in fields(kind)}
    return found


@every_text
def test_a_page_names_only_keys_of_user_config_that_exist(page: Path) -> None:
    text, keys = page.read_text(encoding="utf-8"), nested()
    if page.name == "CHANGELOG.md":  # it names keys that are gone
        return
    assert set(re.findall(r"\buser_config\.(\w+)", text)) <= keys[""]
    for mapping in set(keys) - {""}:
        assert set(re.findall(rf"(?<!ingress\.)\b{mapping}\.(\w+)(?![\w/(])", "\n".join(blocks(text)))) <= keys[
            mapping
        ] | {"py"}
    for given, task in user_configs(text) if page.suffix == ".md" else ():
        if task == GATEWAY:
            IngressConfig.from_user_config(given)
        else:
            TaskConfig.from_user_config(given, task)


def user_configs(text: str) -> Iterator[tuple[Any, str]]:
    """Each `user_config` that a page's code shows, with a task's name: a deployment alone, or a whole file."""
    whole = re.findall(r"<<'END'\n(.*?)^END$", text, re.M | re.S)
    parts = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", text, re.M) if "user_config:" in block]
    for shown in (yaml.safe_load(one) for one in (*whole, *parts) if "user_config:" in one):
        for application in shown.get("applications", [{"deployments": [shown]}]):
            for deployment in application["deployments"]:
                if "user_config" in deployment:
                    yield deployment["user_config"], deployment.get("name", next(iter(TASKS)))


def test_operations_explain_every_key_of_user_config() -> None:
    table = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for mapping, keys in nested().items():
        for key in keys:
            names = [f"`{mapping}.{key}`", f"`{key}`"] if mapping else [f"`user_config.{key}`", f"`{key}`"]
            assert any(name in table for name in names), f"{mapping}.{key}"


def test_pages_state_the_defaults_of_the_code() -> None:
    defaults = {
        **{f"batching.{name}": value for name, value in asdict(BatchingConfig()).items()},
        **{f"slots.{name}": value for name, value in asdict(SlotsConfig()).items() if value is not None},
        "allow_unverified": False,
        **{f"queue.{name}": value for name, value in asdict(QueueConfig()).items()},
        "drain_timeout_s": TaskConfig("model").drain_timeout_s,
    }
    assert stated("operations.md", defaults) == {name: worded(value) for name, value in defaults.items()}
    limits = asdict(LimitsConfig())
    assert limits["max_body_bytes"] == 4 * 2**20
    assert stated("http_api.md", limits) == {name: f"{value:,}" for name, value in limits.items()} | {
        "max_body_bytes": "4 MiB"
    }


def worded(value: float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{int(value):,}" if value == int(value) else str(value)


def stated(page: str, names: Iterable[str]) -> dict[str, str]:
    """The second column of a page's tables, for the rows of these names."""
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)
    return {name: value for name, value in rows if name in set(names)}


def test_operations_name_the_metrics_that_replicas_report() -> None:
    sources = (ROOT / "deployments" / "observability").glob("*.py")
    reported = {
        f"{name}{'_total' if kind.startswith('Counter') else ''}"
        for source in sources
        for kind, name in re.findall(
            r'(Counter|Histogram|seconds|Gauge|GaugeMetricFamily|CounterMetricFamily)\((?:registry, )?\s*"(\w+)"',
            source.read_text(encoding="utf-8"),
        )
    }
    named = re.findall(r"`(sextet_\w+)`", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    assert set(named) == reported


def test_operations_name_the_protocols_of_metrics() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"`protocol` is (.+?)\. ", " ".join(page.split()))
    names = {module.__name__.rpartition(".")[2] for module in modules()}
    assert set(re.findall(r"`(\w+)`", listed)) == {*names, NO_PROTOCOL}


def test_the_glossary_has_the_same_entries_in_both_languages() -> None:
    english, korean = (
        re.findall(r"^\| \*\*(.+?)\*\*.*\| ([^|]*) \|$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.M)
        for name in ("glossary.md", "glossary.ko.md")
    )
    words = [word for word, _ in english]
    assert len(words) == len(set(words))
    assert english == korean


def test_both_readmes_show_the_same_commands_and_answers() -> None:
    for language in ("sh", "python", "json", "text"):
        fenced = (re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S) for text in READMES)
        english, korean = ([re.sub(r" *#.*", "", one) for one in each] for each in fenced)
        assert english
        assert english == korean


def test_both_readmes_draw_the_same_tree_and_name_every_command() -> None:
    english, korean = (re.findall(r"^    ([\w.]+(?:\.yaml|\.py|/)) ", text, re.M) for text in READMES)
    assert english == korean
    assert all((ROOT / one).exists() for one in english)
    group: Any = typer.main.get_command(sextet.app)
    for text in READMES:
        (line,) = re.findall(r"^    sextet.py .*", text, re.M)
        assert set(re.findall(r"\w+", line.split(": ")[-1])) == set(group.commands)
