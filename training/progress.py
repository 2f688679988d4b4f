"""Progress: a bar over the steps, or a line each where nobody watches; a row of a table for every evaluation."""

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Bar(ProgressCallback):  # type: ignore[misc]
    """transformers' bar, with the loss on it instead of a dictionary under it."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        loss = (given.get("logs") or {}).get("loss")
        if loss is not None and self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {loss:.4f}")


class Lines(TrainerCallback):  # type: ignore[misc]
    """In a file, where a bar is one endless line: a line of its own every `logging_steps`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given.get("logs") or {}
        if "loss" in logs:
            rate = f"learning rate {logs['learning_rate']:.3g}"
            self._say(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}, {rate}")


class EpochTable:
    """Prints one aligned row per evaluation, under a header that is printed once; the bar stays below."""

    def __init__(self, shown: tuple[str, ...]) -> None:
        self._shown = shown  # names of scores, of which there may be more than a line holds
        self._header: list[str] = []

    def row(self, state: TrainerState, metrics: dict[str, float]) -> None:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        cells = {"epoch": f"{state.epoch or 0:.2f}", "step": str(state.global_step)}
        cells["training loss"] = f"{losses[-1]:.4f}" if losses else "no log"
        for name, value in metrics.items():
            if name.startswith("eval_") and name.endswith(tuple(f"_{one}" for one in (*self._shown, "loss"))):
                label = name.removeprefix("eval_").removeprefix("validation_").replace("_", " ")
                cells["validation loss" if label == "loss" else label] = f"{value:.4f}"
        if not self._header:
            self._header = list(cells)
            tqdm.write(self._line(self._header))
        tqdm.write(self._line([cells.get(name, "") for name in self._header]))

    def _line(self, cells: list[str]) -> str:
        return "  ".join(f"{cell:>{max(8, len(name))}}" for cell, name in zip(cells, self._header, strict=True))
