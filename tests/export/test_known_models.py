"""The checkpoints of docs/models.md, by their names, from a Hub: tiny weights under the config of each."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from export.build import ExportArgs, export_checkpoint
from pipelines.errors import CheckpointError
from tests.hub import Hub
from tests.known_models import DECODERS, ENCODER_DECODERS, KNOWN_MODELS, KnownModel

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("HF_TOKEN", raising=False)
        patch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.parametrize("known", KNOWN_MODELS, ids=lambda known: known.name)
def test_a_checkpoint_that_people_know_does_what_the_page_says(known: KnownModel, hub: Hub, tmp_path: Path) -> None:
    hub.add(known.name, known.write(tmp_path / "checkpoint"))
    args, said = ExportArgs(known.name, known.task, tmp_path / "artifact"), list[str]()
    (row,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{known.name}` |"))
    if known.refused:
        with pytest.raises(CheckpointError) as refused:
            export_checkpoint(args, said.append)
        assert "\n" not in str(refused.value)
        assert "refused" in row
        return

    artifact = export_checkpoint(args, said.append)

    assert artifact.manifest.source.checkpoint == known.name
    assert artifact.manifest.architecture == known.architecture
    in_slots = known in (*DECODERS, *ENCODER_DECODERS) and not known.says
    assert (artifact.manifest.cache == "slots") == in_slots
    assert in_slots == ("| slots |" in row)
    assert known.says in "".join(said)
