"""An engine, and the PyTorch model it must agree with, on the same tiny checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.generation.open import open_engine
from pipelines.generation.plain.decoder import CausalDecoder, open_decoder
from pipelines.generation.plain.engine import PlainEngine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.generation.slots.engine import SlotEngine
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.pipelines.generation.models import SLOTS, WINDOW, changes_of, task_of
from tests.tiny_checkpoints import DECODERS


@pytest.fixture(scope="session")
def engine(exported: Callable[..., Path]) -> Callable[[str], PlainEngine]:
    """`engine(architecture)`; decoder-only models read prompts in chunks of five tokens."""
    made: dict[str, PlainEngine] = {}

    def make(architecture: str) -> PlainEngine:
        if architecture not in made:
            artifact = ModelArtifact.open(
                exported(architecture, task_of(architecture), **changes_of(architecture)), allow_unverified=True
            )
            if architecture in DECODERS:
                session = InferenceSession(artifact.graph("model"), SessionConfig())
                made[architecture] = PlainEngine(CausalDecoder(session, prefill_chunk_tokens=5))
            else:
                made[architecture] = PlainEngine(open_decoder(artifact, SessionConfig()))
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def slot_engine(exported: Callable[..., Path]) -> Callable[[str], SlotEngine]:
    """`slot_engine(architecture)`: four slots of 100 tokens; prompts are read in chunks of five tokens."""
    made: dict[str, SlotEngine] = {}

    def make(architecture: str) -> SlotEngine:
        if architecture not in made:
            folder = exported(architecture, task_of(architecture), **changes_of(architecture))
            artifact = ModelArtifact.open(folder)
            opened = open_engine(artifact, SessionConfig(), SlotsConfig(SLOTS, WINDOW, prefill_chunk_tokens=5))
            assert isinstance(opened, SlotEngine)
            made[architecture] = opened
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def torch_model(checkpoint: Callable[..., Path]) -> Callable[[str], Any]:
    """`torch_model(architecture)`: the same checkpoint in transformers."""
    made: dict[str, Any] = {}

    def make(architecture: str) -> Any:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(1)
        if architecture not in made:
            path = checkpoint(architecture, task_of(architecture), **changes_of(architecture))
            loader = (
                transformers.AutoModelForCausalLM if architecture in DECODERS else transformers.AutoModelForSeq2SeqLM
            )
            made[architecture] = loader.from_pretrained(path).eval()
        return made[architecture]

    return make
