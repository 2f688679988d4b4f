"""ExportArgs: the options of one export, for the command line and for cluster.yaml. Light: it imports no framework."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from checkpoints.generations import EXPORTERS, OPTIMUM
from pipelines.runtime.artifact import Optimization, Precision
from pipelines.tasks import TASKS

PRECISIONS: tuple[str, ...] = get_args(Precision)
LEVELS: tuple[str, ...] = get_args(Optimization)
DEVICES = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class ExportArgs:
    """What to export and how; the text of each field is its help. Building checks it."""

    checkpoint: Annotated[str, "A folder, a Hub id, a .gguf file or starter:NAME; with --all, a cluster.yaml."]
    task: Annotated[str, f"One of {', '.join(TASKS)}."]
    output: Annotated[Path, "The artifact's folder."]
    revision: Annotated[str | None, "A commit, tag or branch of the Hub repository."] = None
    precision: Annotated[str, "fp32, int8 (CPU), fp16 (GPU), or int4 for decoder-only models."] = "fp32"
    optimize: Annotated[str | None, f"{', '.join(LEVELS[:-1])} or {LEVELS[-1]}; chosen per device if absent."] = None
    device: Annotated[str, f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}."] = "cpu"
    exporter: Annotated[str, f"{' or '.join(EXPORTERS)}: docs/models.md says what each reaches."] = OPTIMUM
    allow_untrained_head: Annotated[bool, "Export a head that was never trained."] = False
    allow_pickle: Annotated[bool, "Load pickled weights: they can run code."] = False
