"""cluster.hub.yaml from end to end, on a machine whose Hub holds tiny checkpoints under the ids that it names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

import pipelines
from deployments.config import read_tasks
from tests.hub import Hub

SHIPPED = Path(__file__).parent.parent / "cluster.hub.yaml"
ARCHITECTURES = {
    "text-classification": "distilbert",
    "question-answering": "distilbert",
    "token-classification": "bert",
    "translation": "marian",
    "summarization": "bart",
    "text-generation": "gpt2",
}
INPUTS = dict.fromkeys(ARCHITECTURES, "Anna Smith wrote the letter in Paris.") | {
    "question-answering": {"question": "Who wrote the letter?", "context": "Anna Smith wrote it in Paris."}
}


def test_every_revision_is_a_commit() -> None:
    sources = [config.source for config in read_tasks(SHIPPED).values()]

    assert len(sources) == 6
    assert all(source is not None and source.revision is not None and len(source.revision) == 40 for source in sources)


def test_the_named_models_are_exported_once_and_answer(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    cluster = tmp_path / SHIPPED.name
    # In int8 a tiny random model now and then gives one answer of thirty that differs, which is too many.
    cluster.write_text(SHIPPED.read_text(encoding="utf-8").replace("precision: int8", "precision: fp32"))
    with Hub() as hub:
        for task, config in read_tasks(cluster).items():
            assert config.source is not None
            folder = checkpoint(ARCHITECTURES[task], task)
            hub.add(config.source.checkpoint, folder, branch="pinned", commit=config.source.revision)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        command = [sys.executable, "-m", "sextet", "export", "--all", str(cluster)]
        first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert first.returncode == 0, first.stderr
        fetched = len(hub.fetched)
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert second.returncode == 0, second.stderr
    assert fetched > 0
    assert len(hub.fetched) == fetched
    assert [line.split()[0] for line in second.stderr.splitlines()] == ["checking"] * 6
    for task, config in read_tasks(cluster).items():
        pipeline = pipelines.load(config.model, task=task)
        assert config.source is not None
        assert pipeline.artifact.manifest.source.checkpoint == config.source.checkpoint
        assert pipeline.artifact.manifest.source.revision == config.source.revision
        assert pipeline(INPUTS[task]) is not None


def test_both_clusters_differ_only_in_their_models_and_the_threads_that_suit_them() -> None:
    ours, hub = (yaml.safe_load((SHIPPED.parent / name).read_text()) for name in ("cluster.yaml", "cluster.hub.yaml"))
    for cluster in (ours, hub):
        for application in cluster["applications"]:
            for deployment in application["deployments"]:
                for key in ("model", "source", "threads"):
                    deployment.get("user_config", {}).pop(key, None)

    assert ours == hub
