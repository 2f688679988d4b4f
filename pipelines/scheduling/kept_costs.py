"""Kept costs: what batches of a model cost on this machine, kept from one start of a replica to the next.

Measuring takes two seconds, in which the successor of a replica that died answers nobody. Old costs are as good as new
ones: they decide the sizes of the first batches, and LearnedCost goes on from there.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session_config import usable_cores
from pipelines.scheduling.batching import Measurement
from pipelines.scheduling.cost_measurement import shapes_within
from pipelines.scheduling.scheduler import BatchingConfig

LONGEST_S = 30 * 86_400.0  # a machine changes: kernels, firmware, neighbours
_CPU = Path("/proc/cpuinfo")


class KeptCosts:
    """A file in `folder` for all that decides what a batch costs."""

    def __init__(self, folder: Path, *decides: Any) -> None:
        """`decides` is of JSON: the model, how it runs, the versions. The processor and its cores are added to it."""
        digest = hashlib.sha256(msgspec.json.encode((decides, _processor(), usable_cores()))).hexdigest()
        self.file = folder / f"{digest[:32]}.json"

    @classmethod
    def of(cls, folder: Path, artifact: ModelArtifact, threads: int, batching: BatchingConfig) -> "KeptCosts":
        """Those of an encoder that runs on so many threads of this machine's CPU, loaded or not."""
        import onnxruntime  # here: `sextet doctor` runs where it is missing or broken, and says so

        manifest, longest = artifact.manifest, artifact.manifest.tokenizer.max_length
        files = sorted((name, one.sha256) for name, one in manifest.files.items())
        shapes = list(shapes_within(longest, batching.max_batch_tokens, batching.max_batch_size))
        return cls(folder, files, threads, batching.concurrency, shapes, onnxruntime.__version__)

    def read(self) -> list[Measurement]:
        """Empty where none were kept, or not lately; what is damaged is measured again."""
        try:
            if time.time() - self.file.stat().st_mtime > LONGEST_S:
                return []
            measured = msgspec.json.decode(self.file.read_bytes(), type=list[Measurement])
        except (OSError, msgspec.MsgspecError):
            return []
        return measured if all(min(one.rows, one.longest, one.seconds) > 0 for one in measured) else []

    def write(self, measured: Sequence[Measurement]) -> None:
        """Whole or not at all; a disk that is full keeps nothing."""
        beside = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                beside.write_bytes(msgspec.json.encode(list(measured)))
                beside.replace(self.file)
            finally:
                beside.unlink(missing_ok=True)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in _CPU.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""
