"""Trainer: transformers' trainer with a row order that a resumed run repeats, and with scores beside the loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerState
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import EvalLoopOutput

from pipelines.errors import TrainingError
from training.callbacks import kept
from training.objective import IGNORED

Values = dict[str, float]


class WorkshopTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed for mypy
    """`scores(name)` scores the model on the validation rows of that name; `evaluated` is told of each evaluation."""

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
        if not args and not kwargs.get("eval_dataset"):  # of all validation files, not of one
            self._evaluated(self.state, metrics)
        return metrics


class LengthGroupedSampler(Sampler[int]):
    """Row numbers, shuffled so that rows of similar length (in tokens) share a batch of `batch_size` rows.

    The order depends on the seed and the epoch alone, so that a resumed run repeats it. transformers' sampler draws
    from the global generator before a resumed run restores the generator's state: that run would see other rows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


def weighted_loss(weights: torch.Tensor, smoothing: float) -> Callable[..., torch.Tensor]:
    """Cross entropy that weighs each example by its label: `weights` is (labels,)."""

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
    """(labels,) float32: as `chosen` names them, 1 for others; or `balanced`: each label weighs the same in total."""
    if not isinstance(chosen, str):
        return torch.tensor([chosen.get(label, 1.0) for label in labels])
    counts = torch.bincount(torch.tensor(list(targets)), minlength=len(labels)).float()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), torch.ones_like(counts))
