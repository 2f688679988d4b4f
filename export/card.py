"""Card: the README.md of an artifact, for people."""

from pathlib import Path

from pipelines.runtime.artifact import Manifest


def model_card(manifest: Manifest, output: Path, size_bytes: int) -> str:
    """What it is, where it came from, how far it agrees with PyTorch, and how to serve it."""
    source, parity = manifest.source, manifest.parity
    licence = source.licence or "other"
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
    if manifest.labels:
        rows["Labels"] = ", ".join(manifest.labels)
    compared = {
        "Verdict": "passed" if parity.passed else "FAILED",
        "Required": parity.threshold,
        "Inputs": str(parity.inputs),
        "Largest difference of a logit": f"{parity.largest_difference:.2g} (unit scale)",
        "Agreement": f"{parity.agreement:.2%}",
    }
    if parity.perplexities is not None:
        before, after = parity.perplexities
        compared["Perplexity"] = f"{after:.2f}, PyTorch's {before:.2f} ({parity.perplexity_increase:+.1%})"
    differing = "".join(f"* {line}\n" for line in parity.disagreements)
    return f"""---
license: {licence}
pipeline_tag: {manifest.task}
library_name: onnx
---

# {output.name}: {manifest.task}

{_table(rows)}

## Compared with PyTorch

{_table(compared)}

{"Answers that differ:" if differing else "Every answer was the same."}

{differing}
## Use

```python
import pipelines

model = pipelines.load("{output.name}")
```

or as `model:` of the task `{manifest.task}` in cluster.yaml, and `sextet serve cluster.yaml`.
"""


def _table(rows: dict[str, str]) -> str:
    escaped = {name: value.replace("|", "\\|") for name, value in rows.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in escaped.items())])
