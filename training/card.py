"""Card: the README.md of a finetuned checkpoint, for people, for the Hub, and for the export that reads its licence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import ResolvedCheckpoint
from export.card import facts, piped, with_metadata, with_results
from training.recipe import FinetuneArgs


def checkpoint_card(
    args: FinetuneArgs, labels: Sequence[str], metrics: Mapping[str, Any], base: ResolvedCheckpoint | None
) -> str:
    """What the checkpoint was made from, its scores, and what to do with it next."""
    licence = (base.licence if base else None) or "other"
    training, validation = metrics["training"], metrics["validation"]
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
    name = Path(args.output).name
    card = with_metadata(
        f"""# {name}: {args.task}

{facts(rows)}

{_scores(validation)}

![learning curve](learning-curve.png)

## Use

    sextet evaluate {args.output} --data FILE
    sextet export {args.output} --task {args.task} --output models/{name}
""",
        license=licence,
        pipeline_tag=args.task,
    )
    for file, found in validation.items():
        scores = {metric: value for metric, value in found.items() if metric != "rows"}
        card = with_results(card, args.task, name, Path(args.validation[file]).name, file, scores)
    return card


def _scores(validation: Mapping[str, Mapping[str, float]]) -> str:
    if not validation:
        return "It was not measured while training: there was no validation file."
    names = [name for name in next(iter(validation.values())) if name != "rows"]
    table = [["validation file", "rows", *names]]
    table += [
        [file, str(found["rows"]), *(f"{found[name]:.4g}" for name in names)] for file, found in validation.items()
    ]
    return piped(table)
