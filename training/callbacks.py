"""Callbacks: how a training run reports its progress, stops on a signal, and is continued."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from checkpoints.frameworks import Progress
from pipelines.errors import TrainingError


class Bar(ProgressCallback):  # type: ignore[misc]
    """A bar over the steps, with the loss on it."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        loss = (given.get("logs") or {}).get("loss")
        if loss is not None and self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {loss:.4f}")


class Lines(TrainerCallback):  # type: ignore[misc]
    """A line every `logging_steps`, for output that goes to a file."""

    def __init__(self, say: Progress) -> None:
        self._say = say

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        logs = given.get("logs") or {}
        if "loss" in logs:
            rate = f"learning rate {logs['learning_rate']:.3g}"
            self._say(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}, {rate}")


class EpochTable:
    """Prints a row for each evaluation under one header; the bar stays below. `shown` names the scores."""

    def __init__(self, shown: tuple[str, ...]) -> None:
        self._shown = shown
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


class Interruption(TrainerCallback):  # type: ignore[misc]
    """On SIGINT or SIGTERM: finish the step, write a checkpoint, stop. A second signal ends the process at once."""

    def __init__(self, say: Progress) -> None:
        self._say = say
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals within it; only the main thread can."""
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
    """The newest checkpoint that is complete; removes those that a killed run left half written."""
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
    """The end of the error of a run that stops early: what was kept, and how to go on."""
    last = last_whole_checkpoint(checkpoints)
    if last is None:
        return "no checkpoint was written yet, so there is nothing to go on from (save_strategy: steps writes earlier)"
    return f"kept {last}; the same command goes on from there"
