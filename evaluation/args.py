"""EvaluateArgs: the options of `sextet evaluate`. Light: it imports no framework."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

RESAMPLES = 1000


@dataclass(frozen=True)
class EvaluateArgs:
    """What to measure, on which rows; the text of each field is its help. Each of `systems` becomes a column."""

    systems: Annotated[tuple[str, ...], "Checkpoints, artifacts or URLs of running tasks."]
    data: Annotated[str, "Labelled rows: a file, SOURCE,TARGET or a Hub data set."]
    task: Annotated[str | None, "Where the first of SYSTEMS does not say it."] = None
    columns: Annotated[Mapping[str, str | int], "FIELD=COLUMN, by name, or by number from 0."] = field(
        default_factory=dict
    )
    labels: Annotated[Mapping[str, str], "LABEL=NAME: rename a label of the file."] = field(default_factory=dict)
    problem_type: Annotated[str | None, "multi_label_classification or regression."] = None
    encoding: Annotated[str, "Of the file, such as cp949."] = "utf-8"
    format: Annotated[str | None, "Read the file as this suffix says: conll."] = None
    max_bad_rows: Annotated[int, "Rows that may be reported and left out."] = 0
    max_samples: Annotated[int | None, "Draw so many rows."] = None
    seed: Annotated[int, "Of that draw."] = 42
    parameters: Annotated[Mapping[str, Any], "A JSON object that goes along with every question."] = field(
        default_factory=dict
    )
    resamples: Annotated[int, "Bootstrap draws behind the intervals."] = RESAMPLES
    alone: Annotated[bool, "An artifact without its checkpoint beside it."] = False
    output: Annotated[Path | None, "A folder for report.json and the pictures."] = None
