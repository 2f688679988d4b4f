"""Costs: what a replica's batches take, as it was measured on this machine, or in a file."""

from pathlib import Path
from typing import Any

import msgspec

import pipelines
from deployments.config import TaskConfig
from pipelines.errors import ConfigurationError, first_line
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.batching import CostModel, Measurement
from pipelines.scheduling.kept_costs import KeptCosts
from planning.search import Say
from planning.simulated.model import EncoderModel, SimulatedModel


def model_of(name: str, config: TaskConfig, artifact: ModelArtifact, costs: Path | None, say: Say) -> SimulatedModel:
    """The model of an application of cluster.yaml. `costs` is a file as `KeptCosts` writes them; without one, those
    count that a replica of this machine has kept. Where there are none, the model is loaded and measured here.
    """
    if costs is not None:
        known = _read(costs)
    elif config.device == "cpu":
        known = _kept(name, config, artifact, say)
    else:
        raise ConfigurationError(f"{name} runs on {config.device}, whose costs are not kept: name a file with --costs")
    return EncoderModel(CostModel.fit(known, packed=config.device != "cpu"), config.batching, config.queue)


def _kept(name: str, config: TaskConfig, artifact: ModelArtifact, say: Say) -> list[Measurement]:
    from deployments.app import costs

    threads, folder = config.threads or 1, costs()
    if folder is None:
        raise ConfigurationError(f"{name}: this user has no home to keep costs in: name a file with --costs")
    kept = KeptCosts.of(folder, artifact, threads, config.batching)
    known = kept.read()
    if not known:
        say(f"{name}: measuring what its batches cost on this machine")
        loaded: Any = pipelines.load(
            artifact.path,
            task=artifact.manifest.task,
            threads=threads,
            concurrency=config.batching.concurrency,
            allow_unverified=config.allow_unverified,
        )
        loaded.scheduler(config.batching, config.queue, costs=folder)
        known = kept.read()
    if not known:
        raise ConfigurationError(f"{name}: {kept.file} cannot be written; name a file of costs with --costs")
    return known


def _read(path: Path) -> list[Measurement]:
    try:
        known: list[Measurement] = msgspec.json.decode(path.read_bytes(), type=list[Measurement])
    except FileNotFoundError:
        raise ConfigurationError(f"--costs: {path} does not exist") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"--costs: {path}: {first_line(error)}") from None
    if not known or not all(_is_positive(one) for one in known):
        raise ConfigurationError(f'--costs: {path}: allowed: [{{"rows": 1, "longest": 64, "seconds": 0.01}}, ...]')
    return known


def _is_positive(one: Any) -> bool:
    return bool(min(one.rows, one.longest, one.seconds) > 0)
