"""An engine that is opened on CUDA: which sessions it asks for. Here the CPU provider runs them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import ConfigurationError
from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.memory import slot_bytes
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW

Artifacts = Callable[[str, str], ModelArtifact]
MODELS = pytest.mark.parametrize(
    ("architecture", "task"), [("llama", "text-generation"), ("bart", "translation"), ("t5", "summarization")]
)


@pytest.fixture
def artifact_of(exported: Callable[..., Path]) -> Artifacts:
    return lambda architecture, task: ModelArtifact.open(exported(architecture, task, "fp16", device="cuda"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, tuple[SessionConfig, bool]]:
    """What was asked of each session: its config, and whether it captures, by the file of its graph."""
    asked: dict[str, tuple[SessionConfig, bool]] = {}

    def opened(graph: Path, config: SessionConfig, *, captures: bool = False) -> InferenceSession:
        asked[graph.name] = (config, captures)
        return InferenceSession(graph, replace(config, device="cpu"), captures=captures)

    monkeypatch.setattr("pipelines.generation.open.InferenceSession", opened)
    return asked


@pytest.mark.parametrize("cuda_graphs", [True, False])
@MODELS
def test_it_decodes_in_a_session_that_captures(
    architecture: str,
    task: str,
    cuda_graphs: bool,
    artifact_of: Artifacts,
    asked: Mapping[str, tuple[SessionConfig, bool]],
) -> None:
    """Without it steps are fixed in shape and captured by nobody: slower than without graphs, and nothing says so."""
    artifact = artifact_of(architecture, task)
    open_engine(artifact, SessionConfig("cuda"), SlotsConfig(SLOTS, WINDOW, cuda_graphs=cuda_graphs))
    for role, graph in artifact.manifest.graphs.items():
        config, captures = asked[graph]
        assert (config.device, captures) == ("cuda", cuda_graphs and role != "encoder")


@MODELS
def test_weights_activations_and_kv_cache_stay_within_one_bound(
    architecture: str, task: str, artifact_of: Artifacts, asked: Mapping[str, tuple[SessionConfig, bool]]
) -> None:
    artifact, slots, limit = artifact_of(architecture, task), SlotsConfig(SLOTS, WINDOW), 2**30
    cache = SLOTS * (slot_bytes(artifact, WINDOW) or 0)
    open_engine(artifact, SessionConfig("cuda", gpu_mem_limit_bytes=limit), slots)
    arenas = [config.arena_bytes or 0 for config, _ in asked.values()]
    assert len(arenas) == len(artifact.manifest.graphs)
    assert limit - len(arenas) < sum(arenas) + cache <= limit
    with pytest.raises(ConfigurationError, match=rf", and the KV cache {cache}; lower slots.slots or slots.max_tokens"):
        open_engine(artifact, SessionConfig("cuda", gpu_mem_limit_bytes=cache), slots)
