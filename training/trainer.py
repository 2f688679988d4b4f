"""Trainer: transformers' own, with an order of rows that a resumed run repeats, scores beside the loss, clean stops."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy

from pipelines.errors import TrainingError
from training.sampler import LengthGroupedSampler

Values = dict[str, float]
IGNORED = -100


class WorkshopTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed for mypy
    """`scores(name)` measures the model on the validation rows of that name; `evaluated` hears of each evaluation."""

    def __init__(
        self,
        *,
        scores: Callable[[str], Values],
        evaluated: Callable[[TrainerState, Values], None],
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self._scores, self._evaluated = scores, evaluated

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_length:
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthGroupedSampler(lengths, self.args.train_batch_size, self.args.seed)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise TrainingError(
                f"the loss is {loss.item()} at step {step}: with a learning_rate of {self.args.learning_rate:g} the "
                f"training diverges; try a tenth of it, or max_grad_norm; {kept(Path(self.args.output_dir))}"
            )
        return loss

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        found = self._scores(metric_key_prefix.removeprefix("eval_"))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> Values:
        metrics: Values = super().evaluate(*args, **kwargs)
        if not args and not kwargs.get("eval_dataset"):  # all validation files together, not one within
            self._evaluated(self.state, metrics)
        return metrics


def weighted_loss(weights: torch.Tensor, smoothing: float) -> Callable[..., torch.Tensor]:
    """Cross entropy in which an example counts as its label's entry of `weights` (labels,) says."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        labels = labels.reshape(-1)
        total = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels,
            weight=weights.to(logits.device),
            ignore_index=IGNORED,
            label_smoothing=smoothing,
            reduction="sum",
        )
        return total / (
            num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum().clamp(min=1)
        )

    return loss


def class_weights(labels: tuple[str, ...], targets: Iterator[int], chosen: str | Mapping[str, float]) -> torch.Tensor:
    """(labels,) float32: as named, or such that all labels together weigh the same, and an average row 1."""
    if not isinstance(chosen, str):
        return torch.tensor([chosen.get(label, 1.0) for label in labels])
    counts = torch.bincount(torch.tensor(list(targets)), minlength=len(labels)).float()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), torch.ones_like(counts))


# --- stopping ---


class Interruption(TrainerCallback):  # type: ignore[misc]
    """SIGINT or SIGTERM: finish the step, write a checkpoint, stop. A second signal does what it always did."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the signals mean this; only a main thread hears them."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, self._ask) for number in numbers}
        except ValueError:  # not the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._say("stopping after this step; once more stops at once and loses the steps since the last checkpoint")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._asked:
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._asked:
            raise TrainingError(f"interrupted at step {state.global_step}; {kept(Path(args.output_dir))}")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; what a killed run left half written is removed."""
    found = None
    for checkpoint in folder.glob("checkpoint-*") if folder.is_dir() else ():
        try:
            step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):  # it is written last
            shutil.rmtree(checkpoint, ignore_errors=True)
            continue
        found = max(found or (step, checkpoint), (step, checkpoint))
    return found[1] if found else None


def kept(checkpoints: Path) -> str:
    """What a user has to know of a training that ends before its time."""
    last = last_whole_checkpoint(checkpoints)
    if last is None:
        return "no checkpoint was written yet, so there is nothing to go on from (save_strategy: steps writes earlier)"
    return f"kept {last}; the same command goes on from there"


SAVING = (SaveStrategy.STEPS, SaveStrategy.EPOCH)
