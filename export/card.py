"""Card: the README.md of an artifact or of a checkpoint, for people; its metadata are for the Hub."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.runtime.artifact import Manifest


def model_card(manifest: Manifest, output: Path, size_bytes: int) -> str:
    """The card of an artifact: its source, its parity with PyTorch, and how to serve it."""
    source, parity = manifest.source, manifest.parity
    rows = {
        "Source": f"`{source.checkpoint}`",
        "Revision": f"`{source.revision}`",
        **({"Adapter of": f"`{source.base}`"} if source.base else {}),
        "Licence": source.licence or "not stated by the source",
        "Architecture": manifest.architecture,
        "Precision": f"{manifest.precision}, optimization {manifest.optimization or 'none'}, for {manifest.device}",
        "Longest input": f"{manifest.tokenizer.max_length} tokens",
        "Size": f"{size_bytes / 1e6:.1f} MB",
    }
    if manifest.quantization:
        rows["Blocks"] = "{block_size} weights share a scale; accuracy level {accuracy_level}".format_map(
            manifest.quantization
        )
    if manifest.rows == "packed":
        rows["Batches"] = "packed, without padding"
    if manifest.labels:
        rows["Labels"] = ", ".join(manifest.labels)
    compared = {
        "Verdict": "passed" if parity.passed else "FAILED",
        "Required": parity.threshold,
        "Inputs": str(parity.inputs),
        "Compared on": parity.compared_on,
        "Largest difference of a logit": f"{parity.largest_difference:.2g} (unit scale)",
        "Agreement": f"{parity.agreement:.2%}",
    }
    if parity.perplexities is not None:
        before, after = parity.perplexities
        compared["Perplexity"] = f"{after:.2f}, PyTorch's {before:.2f} ({parity.perplexity_increase:+.1%})"
    differing = "".join(f"* {line}\n" for line in parity.disagreements)
    body = f"""# {output.name}: {manifest.task}

{facts(rows)}

## Compared with PyTorch

{facts(compared)}

{"Answers that differ:" if differing else "Every answer was the same."}

{differing}
## Use

```python
import pipelines

model = pipelines.load("{output.name}")
```

or as `model:` of the task `{manifest.task}` in cluster.yaml, and `sextet serve cluster.yaml`.
"""
    return with_metadata(body, license=source.licence or "other", pipeline_tag=manifest.task, library_name="onnx")


def with_metadata(body: str, **metadata: Any) -> str:
    """A card whose front matter holds the metadata, named as in huggingface_hub's ModelCardData."""
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}"


def with_results(card: str, task: str, model: str, data: str, name: str, scores: Mapping[str, float]) -> str:
    """The card with scores in its `model-index`, which the Hub shows; they replace earlier ones of that name.

    `data` are the rows that were measured on, `name` is the name of the measurement. A card whose front matter cannot
    be read stays as it is.
    """
    import yaml
    from huggingface_hub import EvalResult, ModelCard

    try:
        found = ModelCard(card if card.startswith("---\n") else f"---\n{{}}\n---\n\n{card}")
    except (ValueError, yaml.YAMLError):
        return card
    metadata: Any = found.data
    kept = [one for one in metadata.eval_results or [] if one.dataset_name != name]
    new = [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=name,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in scores.items()
        if math.isfinite(value)
    ]
    metadata.model_name = metadata.model_name or model
    metadata.eval_results = [*kept, *new]
    return str(found)


def facts(rows: Mapping[str, str]) -> str:
    """Names and values as a Markdown table without a head."""
    return piped([["", ""], *([name, value] for name, value in rows.items())])


def piped(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
