"""Measure known checkpoints on their real shapes, with random weights: what an artifact weighs and how fast it is.

python -m tests.model_speeds make NAME ...      export them in int8; the artifacts stay under models/known
python -m tests.model_speeds measure NAME ...   alone on the machine: seconds each

Both go on where they were stopped: what is made or measured is not done again. `python -m tests.models_page` puts the
results, in tests/model_speeds.json, onto docs/models.md.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.figures.result import describe
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import SextetError, first_line
from pipelines.generation.decoding.config import GenerationConfig
from pipelines.generation.decoding.request import DecodeRequest
from pipelines.generation.open import open_engine
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact, Parity
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from tests.known_models import KNOWN_MODELS, KnownModel
from tests.known_shapes import LARGEST, SHAPES
from tests.tiny_checkpoints import model_class_of

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
FOLDER = ROOT / "models" / "known"
THREADS, PRECISION = 2, "int8"
ROWS, TOKENS = 8, 128  # of a batch of an encoder
STREAMS, PROMPT, NEW_TOKENS = 16, 32, 32
REPETITIONS = 3
_NOT_COMPARED = Parity(True, 0, 0.0, 1.0, "random weights of the real shape: for their speed only")


def results() -> dict[str, Any]:
    """What was measured, by the name of the checkpoint."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return found


def machine() -> str:
    """The processor of the newest measurement."""
    found = [one["machine"]["cpu"] for one in results().values() if "machine" in one]
    return found[-1] if found else "none yet"


def cells(known: KnownModel) -> tuple[str, str]:
    """Size and speed, as the page has them."""
    found = results().get(known.name)
    if known.refused:
        return "", ""
    if found is None:
        return "not measured", ""
    if "too_large" in found:
        return f"{found['weights'] / 1e9:.1f}B", "does not fit"
    size = f"{found['weights'] / 1e6:.0f}M, {found['megabytes']:.0f} MB"
    if "rows_s" in found:
        return size, f"{found['rows_s']:.0f} rows/s"
    return size, f"{found['tokens_s_alone']:.0f}, {found['tokens_s']:.0f} tokens/s"


def make(known: KnownModel) -> None:
    """Export the real shape, or keep that it is too large."""
    import torch

    artifact = FOLDER / known.name.replace("/", "--")
    if artifact.exists() or known.name in results():
        return
    shape, config = SHAPES[known.name], known.model_config(SHAPES[known.name])
    with torch.device("meta"):
        weights = sum(one.numel() for one in model_class_of(config, known.task).from_config(config).parameters())
    if weights > LARGEST:
        _keep(known, {"weights": weights, "too_large": True})
        return
    checkpoint = FOLDER / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    args = ExportArgs(str(known.write(checkpoint, shape)), known.task, artifact, precision=PRECISION)
    with patch("export.build.validate", return_value=_NOT_COMPARED):
        export_checkpoint(args)
    (artifact / "weights").write_text(str(weights), encoding="utf-8")
    shutil.rmtree(checkpoint)


def measure(known: KnownModel) -> None:
    """Measure an artifact that was made."""
    folder = FOLDER / known.name.replace("/", "--")
    if known.name in results() or not folder.exists():
        return
    artifact = ModelArtifact.open(folder)
    size = sum(file.size for file in artifact.manifest.files.values())
    found = {"weights": int((folder / "weights").read_text(encoding="utf-8")), "megabytes": round(size / 1e6, 1)}
    rates = _generating(artifact) if known.generates else _reading(artifact)
    _keep(known, {**found, **{name: round(rate, 1) for name, rate in rates.items()}, "machine": describe()})


def _reading(artifact: ModelArtifact) -> Mapping[str, float]:
    session = InferenceSession(artifact.graph("model"), SessionConfig(threads=THREADS))
    ids = np.random.default_rng(0).integers(3, 100, (ROWS, TOKENS))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds = {name: given[name] for name in session.input_names}
    return {"rows_s": ROWS / _seconds(lambda: session.run(feeds))}


def _generating(artifact: ModelArtifact) -> Mapping[str, float]:
    config = SlotsConfig(slots=STREAMS, max_tokens=2 * (PROMPT + NEW_TOKENS))
    engine = open_engine(artifact, SessionConfig(threads=THREADS), config)
    draw = np.random.default_rng(0)

    def request() -> DecodeRequest:
        read = tuple(draw.integers(3, 100, PROMPT).tolist())
        prompt, source = ((3,), read) if "decoder" in artifact.manifest.graphs else (read, ())
        length = len(prompt) + NEW_TOKENS
        return DecodeRequest(prompt, GenerationConfig(max_length=length, eos_token_id=()), source=source)

    def rate(streams: int) -> float:
        return streams * NEW_TOKENS / _seconds(lambda: engine.generate_all([request() for _ in range(streams)]))

    return {"tokens_s_alone": rate(1), "tokens_s": rate(STREAMS)}


def _seconds(do: Callable[[], Any]) -> float:
    taken = []
    for _ in range(REPETITIONS):
        began = perf_counter()
        do()
        taken.append(perf_counter() - began)
    return median(taken)


def _keep(known: KnownModel, found: Mapping[str, Any]) -> None:
    text = json.dumps({**results(), known.name: found}, indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n", encoding="utf-8")


def main(step: str, names: Sequence[str]) -> None:
    """Take a step for each of the named checkpoints that has a shape; all of them where none is named."""
    for known in KNOWN_MODELS:
        if known.name in SHAPES and (not names or known.name in names):
            try:
                {"make": make, "measure": measure}[step](known)
            except SextetError as error:
                print(f"{known.name}: {first_line(error)}", file=sys.stderr)
            else:
                print(f"{known.name}: {', '.join(cells(known))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
