"""axe-core in a page: what of WCAG 2.2 AA, and of good practice, does not hold there."""

import json
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

from tests.browser import Page

PACKAGE = "axe-playwright-python"
"""Of which only the script is used."""
STILL = """
Promise.allSettled(
  document.getAnimations().filter((one) => one.effect.getTiming().iterations < 9).map((one) => one.finished)
).then(() => 0)
"""
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


@cache
def script() -> str:
    (found,) = [one for one in files(PACKAGE) or () if one.name == "axe.min.js"]
    return Path(str(found.locate())).read_text(encoding="utf-8")


def violations(tab: Page) -> list[str]:
    """RULE: what is wrong, and where, of the page as it is now, once its animations have ended."""
    tab.run(script() + ";undefined")
    tab.run(STILL)
    asked = json.dumps({"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations", "passes"]})
    found: Any = tab.run(
        f"axe.run(document, {asked}).then(({{ violations, passes }}) => ({{ violations, passes: passes.length }}))"
    )
    assert found["passes"] > 20  # it has looked
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
