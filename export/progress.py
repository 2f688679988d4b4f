"""Progress: a bar over the steps, and a row of a table for every evaluation."""

from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


class Bar(ProgressCallback):  # type: ignore[misc]
    """transformers' bar, with the loss on it instead of a dictionary under it."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        loss = (given.get("logs") or {}).get("loss")
        if loss is not None and self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {loss:.4f}")


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
            file, found, score = name.removeprefix("eval_").partition("_")
            if found and any(name.endswith(f"_{one}") for one in (*self._shown, "loss")):
                label = name.removeprefix("eval_").removeprefix("validation_").replace("_", " ")
                cells["validation loss" if label == "loss" else label] = f"{value:.4f}"
        if not self._header:
            self._header = list(cells)
            tqdm.write(self._line(self._header))
        tqdm.write(self._line([cells.get(name, "") for name in self._header]))

    def _line(self, cells: list[str]) -> str:
        return "  ".join(f"{cell:>{max(8, len(name))}}" for cell, name in zip(cells, self._header, strict=True))
