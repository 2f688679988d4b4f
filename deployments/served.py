"""Served: what a replica says of its model, and the table of `sextet models`, of what a running cluster serves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deployments.ask import get
from deployments.cluster.processes import resident_bytes
from pipelines.runtime.artifact import FileDigest, ModelArtifact
from pipelines.tasks.pipeline import Pipeline

COLUMNS = ("route", "model", "version", "precision", "parity", "memory", "replicas", "digest")
MIB = 2**20
CARD = "README.md"
MAX_CARD_BYTES = 65_536


def description(pipeline: Pipeline[Any, Any, Any, Any], device: str) -> dict[str, Any]:
    """The model of this process, and its adapters."""
    artifact, manifest = pipeline.artifact, pipeline.artifact.manifest
    adapters = [asdict(one) | {"version": one.version} for one in artifact.adapters]
    return {
        "id": artifact.name,
        "version": artifact.version,
        "digest": artifact.digest,
        "memory_bytes": resident_bytes(),
        "checkpoint": manifest.source.checkpoint,
        "revision": manifest.source.revision,
        "licence": manifest.source.licence,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "device": device,
        "max_length": manifest.tokenizer.max_length,
        "labels": list(manifest.labels),
        "parity": {"passed": manifest.parity.passed, "agreement": manifest.parity.agreement},
        **({"adapters": adapters} if adapters else {}),
    }


def details(pipeline: Pipeline[Any, Any, Any, Any], device: str) -> dict[str, Any]:
    """The description with all of the parity, what was measured, and the card: at most MAX_CARD_BYTES of it, which has
    `card_bytes` in all. Without a card it is empty.
    """
    artifact, manifest = pipeline.artifact, pipeline.artifact.manifest
    card, card_bytes = _card(artifact)
    return description(pipeline, device) | {
        "base": manifest.source.base,
        "parity": asdict(manifest.parity),
        "metrics": dict(manifest.metrics),
        "card": card,
        "card_bytes": card_bytes,
    }


def _card(artifact: ModelArtifact) -> tuple[str, int]:
    """That of the artifact which was loaded: its folder may hold another one by now."""
    file, expected = artifact.path / CARD, artifact.manifest.files.get(CARD)
    try:
        if expected is None or FileDigest.of(file) != expected:
            return "", 0
        with file.open("rb") as opened:
            content = opened.read(MAX_CARD_BYTES)
    except OSError:
        return "", 0
    return content.decode(errors="ignore"), expected.size


def with_adapter(model: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of one of a model's adapters; parity is the base's."""
    own = {"id": adapter["name"], **{name: adapter[name] for name in ("version", "memory_bytes", "rank")}}
    digest = adapter.get("digest", adapter["version"])  # a replica of another release says none
    return {**model, **own, "digest": digest, "adapter_of": model["id"], "adapters": []}


def served(url: str, key: str | None = None) -> list[dict[str, Any]]:
    """The models by route, a task's default before its others; raises AskError."""
    catalog = get(f"{url.rstrip('/')}/", key=key)
    return [one for task in catalog["tasks"] for one in (task, *task["others"])]


def table(models: Sequence[Mapping[str, Any]]) -> str:
    """A line for each."""
    rows = [COLUMNS, *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    model = one["model"]
    digest = "-" if model is None else model.get("digest", "-")  # a replica of another release says none
    return (one["route"], *_cells(model), str(one["replicas"]), digest)


def _cells(model: Mapping[str, Any] | None) -> Iterator[str]:
    if model is None:
        yield from ("-",) * 5
        return
    parity = model["parity"]
    yield from (model["id"], model["version"], model["precision"])
    yield f"{'passed' if parity['passed'] else 'failed'} ({100 * parity['agreement']:.1f}%)"
    yield f"{model['memory_bytes'] / MIB:.0f} MiB"
