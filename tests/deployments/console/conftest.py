"""A cluster of three models: two of one task, one of them with a hostile card and names; and one that generates."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.runtime.artifact import Manifest, Parity, Source
from tests.browser import CHROMIUM, Page, chromium
from tests.deployments.console.served import Cluster, cluster, with_card

TASK, LARGE, GENERATION = "text-classification", "text-classification.large", "text-generation"
SCRIPT = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
HOSTILE = f"""---
license: other
title: "{SCRIPT}"
---
# A card {SCRIPT}

{SCRIPT}

| name {SCRIPT} | value |
|:-:|---:|
| a | {"wide" * 60} |

[run](javascript:window.hacked=1) [data](data:text/html,<script>1</script>) [here](/text-classification)
<https://example.com/page> [hub](https://example.com/x "{SCRIPT}") ![picture](https://example.com/x.png)
[onclick](https://example.com/" onclick="window.hacked=1)

```{SCRIPT}
{SCRIPT}
```
"""
LABELS = (SCRIPT, "긍정", "x" * 400, *(f"label {number}" for number in range(300)))
METRICS = {
    f"test.tsv {SCRIPT}": {
        "rows": 12,
        "sha256": "0" * 64,
        "scores": {"artifact": {"accuracy": [0.91, 0.8, 1.0]}, "PyTorch": {"accuracy": [0.92, 0.81, 1.0]}},
        "difference": {"accuracy": [-0.01, -0.02, 0.0]},
    },
    "of another release": [1, 2],
    "without numbers": {"rows": None, "sha256": None, "scores": {"artifact": {"accuracy": [None, None, None]}}},
}


@pytest.fixture(scope="session")
def models(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    classifier = exported("bert", TASK)
    manifest = Manifest.from_json((classifier / "artifact.json").read_text(encoding="utf-8"))
    hostile = {
        "source": Source(f"someone/{SCRIPT}", "0" * 40, SCRIPT),
        "labels": LABELS,
        "metrics": METRICS,
        "parity": Parity(True, 64, float("nan"), 0.98, SCRIPT, (SCRIPT, "input 3: a, PyTorch b"), (10.0, 10.5)),
    }
    assert manifest.labels
    return {
        TASK: classifier,
        LARGE: with_card(classifier, folder / "large", HOSTILE, **hostile),
        GENERATION: exported("qwen2", GENERATION),
    }


@pytest.fixture(scope="module")
def served(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    traffic = f"{TASK} large 2.5\n{TASK} sticky\n"
    with cluster(tmp_path_factory.mktemp("ingress"), models, traffic) as running:
        yield running


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with chromium(tmp_path) as tab:
        yield tab
        assert tab.faults == []
