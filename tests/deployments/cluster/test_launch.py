"""Artifacts from elsewhere, before and in a replica: what the launcher fetches is what every replica gets."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import reset_sessions  # type: ignore[attr-defined]  # public, but not re-exported

from deployments.cluster.launch import _fetch_artifacts, _tell_models_apart
from deployments.config import deployment_of
from deployments.task_server import TaskServer
from pipelines.errors import ArtifactError
from tests.hub import Hub

TASK = "text-classification"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Callable[..., Path]) -> Iterator[Hub]:
    """A Hub with an artifact as someone/sentiment@main."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    reset_sessions()
    with Hub() as hub:
        hub.add("someone/sentiment", exported("bert", TASK))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
    reset_sessions()


def cluster(model: str) -> dict[str, Any]:
    deployment = {"name": TASK, "user_config": {"model": model}}
    return {"applications": [{"name": TASK, "args": {"task": TASK}, "deployments": [deployment]}]}


def test_replicas_are_told_the_commit_that_the_launcher_fetched(hub: Hub) -> None:
    content, said = cluster("someone/sentiment@main"), list[str]()

    _fetch_artifacts(content, said.append)

    commit = hub.repositories["someone/sentiment"]["main"].commit
    assert content == cluster(f"someone/sentiment@{commit}")
    assert any(line.startswith(f"fetching someone/sentiment@main ({commit[:8]}, ") for line in said)


def test_what_cannot_be_fetched_is_said_before_anything_is_started(hub: Hub) -> None:
    with pytest.raises(ArtifactError) as refused:
        _fetch_artifacts(cluster("someone/sentiment@v9"), lambda _line: None)

    assert str(refused.value) == f"someone/sentiment has no revision 'v9' on {hub.url}"


def test_a_replica_fetches_its_artifact_itself_where_nobody_did(hub: Hub) -> None:
    server = TaskServer(TASK)

    asyncio.run(server.reconfigure({"model": "someone/sentiment@main"}))

    assert server.describe()["architecture"] == "bert"
    with pytest.raises(ArtifactError, match="someone/sentiment has no revision 'v9'"):
        asyncio.run(server.reconfigure({"model": "someone/sentiment@v9"}))
    assert server.describe()["architecture"] == "bert"  # what was right goes on serving


def test_ray_serve_replaces_a_replica_whose_model_changes_and_no_other(tmp_path: Path) -> None:
    def options(**user_config: Any) -> Any:
        content = cluster("m")
        deployment = deployment_of(TASK, content)
        deployment["user_config"] |= user_config
        deployment["ray_actor_options"] = {"num_cpus": 0.2}
        _tell_models_apart(content)
        return deployment["ray_actor_options"]

    assert options(limits={"max_inputs": 1}, batching={"max_batch_size": 3}, drain_timeout_s=1) == options()
    for changed in ({"model": "n"}, {"threads": 2}, {"device": "cuda"}, {"batching": {"concurrency": 2}}):
        assert options(**changed) != options()
        assert options(**changed)["num_cpus"] == 0.2


@pytest.mark.parametrize(
    ("given", "surge_percent"),
    [({}, None), ({"max_replicas_per_node": 1}, 0), ({"max_replicas_per_node": 2, "max_surge_percent": 50}, 50)],
)
def test_the_old_replica_ends_first_where_its_node_has_no_room_beside_it(
    given: dict[str, Any], surge_percent: int | None
) -> None:
    content = cluster("m")
    deployment_of(TASK, content).update(given)

    _tell_models_apart(content)

    assert deployment_of(TASK, content).get("max_surge_percent") == surge_percent
