"""The pages for people say of the tasks what the registry says."""

import re
from pathlib import Path

import pytest

from deployments.api_tables import PAGE, rewritten
from pipelines.tasks import TASKS

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_registry() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert all(f"\n| {task} | " in page for task in TASKS)
    assert page == rewritten(page), "run: python -m deployments.api_tables"


@pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
def test_a_readme_demonstrates_every_task_with_its_first_example(page: str) -> None:
    (shown,) = re.findall(r"^ready http://127.0.0.1:8000\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)

    demonstrated = [line for line in shown.splitlines() if not line.startswith("  -> ")]
    assert demonstrated == [line for name, task in TASKS.items() for line in (name, f"  {task.examples[0]}")]
