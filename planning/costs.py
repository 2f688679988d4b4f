"""Costs: what a replica's batches take, as it was measured on this machine, or in a file."""

from pathlib import Path
from typing import Any

import pipelines
from deployments.config import TaskConfig
from pipelines.errors import ConfigurationError, InvalidInputError, first_line
from pipelines.generation.slots.config import SlotsConfig
from pipelines.runtime.artifact import ModelArtifact
from pipelines.scheduling.batching import CostModel, Measurement
from pipelines.scheduling.kept_costs import KeptCosts
from pipelines.schema import convert, encode, read_json
from pipelines.tasks import TASKS
from planning.search import Say
from planning.simulated.engine import DecodeCost
from planning.simulated.generator import GeneratorModel, measure_decoding
from planning.simulated.model import EncoderModel, SimulatedModel


def model_of(name: str, config: TaskConfig, artifact: ModelArtifact, costs: Path | None, say: Say) -> SimulatedModel:
    """The model of an application of cluster.yaml. `costs` is a file: of an encoder as `KeptCosts` writes them, of a
    generator with the fields of DecodeCost. Without one, those count that a replica of this machine has kept, and what
    is not kept is measured here.
    """
    if costs is None and config.device != "cpu":
        raise ConfigurationError(f"{name} runs on {config.device}, whose costs are not kept: name a file with --costs")
    if TASKS[artifact.manifest.task].generates:
        cost = _measured(name, config, artifact, say) if costs is None else _read(costs, DecodeCost)
        slots = config.slots or SlotsConfig()
        if cost.beams > slots.slots:
            raise ConfigurationError(
                f"--costs: beams is {cost.beams}; allowed: up to {slots.slots}, the slots of {name}"
            )
        return GeneratorModel(cost, slots, config.queue)
    known = _kept(name, config, artifact, say) if costs is None else _read(costs, list[Measurement])
    if not known or not all(min(one.rows, one.longest, one.seconds) > 0 for one in known):
        raise ConfigurationError(f'--costs: {costs}: allowed: [{{"rows": 1, "longest": 64, "seconds": 0.01}}, ...]')
    return EncoderModel(CostModel.fit(known, packed=config.device != "cpu"), config.batching, config.queue)


def _kept(name: str, config: TaskConfig, artifact: ModelArtifact, say: Say) -> list[Measurement]:
    from deployments.app import costs

    folder = costs()
    if folder is None:
        raise ConfigurationError(f"{name}: this user has no home to keep costs in: name a file with --costs")
    kept = KeptCosts.of(folder, artifact, config.threads or 1, config.batching)
    known = kept.read()
    if not known:
        say(f"{name}: measuring what its batches cost on this machine")
        _loaded(config, artifact).scheduler(config.batching, config.queue, costs=folder)
        known = kept.read()
    if not known:
        raise ConfigurationError(f"{name}: {kept.file} cannot be written; name a file of costs with --costs")
    return known


def _measured(name: str, config: TaskConfig, artifact: ModelArtifact, say: Say) -> DecodeCost:
    say(f"{name}: measuring what prompts and tokens cost on this machine")
    slots = (config.slots or SlotsConfig()).slots
    cost = measure_decoding(_loaded(config, artifact), TASKS[artifact.manifest.task].examples[0].inputs, slots)
    say(f"{name}: --costs may name a file with {encode(cost).decode()}")
    return cost


def _loaded(config: TaskConfig, artifact: ModelArtifact) -> Any:
    return pipelines.load(
        artifact.path,
        task=artifact.manifest.task,
        threads=config.threads or 1,
        concurrency=config.batching.concurrency,
        allow_unverified=config.allow_unverified,
        slots=config.slots,
    )


def _read(path: Path, kind: Any) -> Any:
    try:
        return convert(read_json(path.read_bytes()), kind)
    except FileNotFoundError:
        raise ConfigurationError(f"--costs: {path} does not exist") from None
    except (OSError, InvalidInputError) as error:
        raise ConfigurationError(f"--costs: {path}: {first_line(error)}") from None
