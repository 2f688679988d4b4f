"""One real cluster for the whole session: six tiny models behind HAProxy, started by `sextet serve`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.artifacts import ARCHITECTURES
from tests.cluster.serving import Serving, left_over, write_cluster


@pytest.fixture(scope="session")
def models(exported: Callable[..., Path]) -> dict[str, Path]:
    """An artifact for each task."""
    return {task: exported(architecture, task) for task, architecture in ARCHITECTURES.items()}


@pytest.fixture(scope="session")
def cluster(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The cluster, on a disk that Ray takes for full; it stops cleanly at the end and leaves nothing behind."""
    configuration = write_cluster(tmp_path_factory.mktemp("cluster"), models)
    serving = Serving.start(configuration, RAY_local_fs_capacity_threshold="0.01")
    try:
        yield serving.wait_until_ready()
        tree = serving.tree()
        assert serving.stop() == 0, "\n".join(serving.lines)
        assert left_over(tree) == []
    finally:
        serving.process.kill()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes the clients that a test enters into it."""
    with ExitStack() as stack:
        yield stack
