"""Training card: the README.md of a finetuned checkpoint, for people and for the export that reads its licence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import ResolvedCheckpoint
from training.recipe import FinetuneArgs


def checkpoint_card(
    args: FinetuneArgs, labels: Sequence[str], metrics: Mapping[str, Any], base: ResolvedCheckpoint | None
) -> str:
    """What it was made from and by, how good it is, and what to do with it next."""
    licence = (base.licence if base else None) or "other"
    training = metrics["training"]
    rows = {
        "Base": f"`{base.name}`, {base.revision}" if base else "nothing: trained from random weights",
        "Licence": f"{licence}, as of the base; the licence of the data may add to it" if base else "that of the data",
        "Data": ", ".join(f"`{file}`" for file in args.train),
        "Rows": f"{training['rows']:,}",
        "Training": f"{training['steps']:,} steps, {training['epochs']} epochs; recipe.yaml has every setting",
        "Loss": f"{training['first_loss']} at the first log, {training['last_loss']} at the last",
    }
    if labels:
        rows["Labels"] = ", ".join(labels)
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
license: {licence}
pipeline_tag: {args.task}
---

# {Path(args.output).name}: {args.task}

| | |
|---|---|
{lines}

{_scores(metrics["validation"])}

![learning curve](learning-curve.png)

## Use

    sextet evaluate {args.output} --data FILE
    sextet export {args.output} --task {args.task} --output models/{Path(args.output).name}
"""


def _scores(validation: Mapping[str, Mapping[str, float]]) -> str:
    if not validation:
        return "It was not measured while training: there was no validation file."
    names = [name for name in next(iter(validation.values())) if name != "rows"]
    head = ["| validation file | rows | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    return "\n".join(
        head
        + [
            f"| {file} | {found['rows']} | " + " | ".join(f"{found[name]:.4g}" for name in names) + " |"
            for file, found in validation.items()
        ]
    )
