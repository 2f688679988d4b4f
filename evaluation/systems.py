"""Systems: a checkpoint in PyTorch, an artifact in ONNX Runtime or a running task, asked in one way.

`answers` takes what `transformers.pipeline` of the task takes, and answers in its shapes.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from export.tokenizers.tokenizer import max_length as longest_input
from pipelines.errors import ConfigurationError, InvalidInputError, SextetError

Loss = tuple[float, int]
"""The summed negative logprob of a text's tokens but the first, and how many these are."""
_CHUNK = 32  # inputs that go to a system at once


class System(ABC):
    """`name` heads its column; `labels` are those that it can answer, empty where there are none or it cannot tell."""

    name: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def answers(
        self, task: str, inputs: Sequence[Any], parameters: Mapping[str, Any], where: Sequence[str]
    ) -> list[Any]:
        """One answer per input, in order; for text-classification every label with its score, best first.

        Raises InvalidInputError naming the first of `where` whose input cannot be answered, such as a too long one.
        """
        from tqdm import tqdm

        found: list[Any] = []
        with tqdm(total=len(inputs), desc=self.name, leave=False, disable=None) as bar:
            for start in range(0, len(inputs), _CHUNK):
                chunk = list(inputs[start : start + _CHUNK])
                try:
                    found += self._answer(task, chunk, parameters)
                except Exception as error:  # transformers has no error of its own
                    if isinstance(error, SextetError) and not isinstance(error, InvalidInputError):
                        raise
                    raise self._unanswered(task, chunk, parameters, where[start:], error) from error
                bar.update(len(chunk))
        return found

    def _unanswered(
        self, task: str, inputs: list[Any], parameters: Mapping[str, Any], where: Sequence[str], error: Exception
    ) -> InvalidInputError:
        """The error for some inputs, with the place of the first that fails by itself, if any does."""
        for one, place in zip(inputs, where, strict=False):
            try:
                self._answer(task, [one], parameters)
            except Exception as alone:
                return self._cannot(place, alone)
        return self._cannot(f"{where[0]} and after", error)

    def _cannot(self, place: str, error: Exception) -> InvalidInputError:
        kind = "" if isinstance(error, SextetError) else f"{type(error).__name__}: "
        line = " ".join(str(error).split())
        return InvalidInputError(f"{place}: {self.name} cannot answer ({kind}{line[:200]})")

    @abstractmethod
    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        """The answers to a few inputs."""

    def losses(self, texts: Sequence[str], max_length: int | None, where: Sequence[str]) -> list[Loss]:
        """Of each text, or of its last `max_length` tokens, from what the model thinks of a prompt."""
        parameters = {"max_new_tokens": 1, "decoder_input_details": True, "truncate": max_length, "do_sample": False}
        given = {name: value for name, value in parameters.items() if value is not None}
        answers = self.answers("text-generation", texts, given, where)
        known = [[one["logprob"] for one in answer[0]["details"]["prefill"][1:]] for answer in answers]
        return [(-sum(logprobs), len(logprobs)) for logprobs in known]


class TorchSystem(System):
    """A model of transformers, through its own pipeline."""

    def __init__(self, name: str, task: str, model: Any, tokenizer: Any) -> None:
        import transformers

        self.name = name
        self.problem_type = model.config.problem_type
        if task in ("text-classification", "token-classification"):
            self.labels = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
        self._model, self._tokenizer = model, tokenizer
        self._pipeline = transformers.pipeline(task, model=model, tokenizer=tokenizer, device=model.device)

    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        given = {"batch_size": _CHUNK, **parameters}
        if task == "text-classification":
            given |= {"truncation": True, "top_k": None}
        elif task in ("translation", "summarization"):
            given |= {"truncation": True}
        if task == "question-answering":
            questions, contexts = ([one[name] for one in inputs] for name in ("question", "context"))
            answers = self._pipeline(question=questions, context=contexts, **given)
        else:
            answers = self._pipeline(inputs, **given)
        return answers if isinstance(answers, list) else [answers]  # QA unpacks a single one

    def losses(self, texts: Sequence[str], max_length: int | None, where: Sequence[str]) -> list[Loss]:
        import torch

        found = []
        longest = longest_input(self._tokenizer, self._model)
        for text, place in zip(texts, where, strict=True):
            ids = self._tokenizer(text)["input_ids"][-(max_length or 0) :]
            if len(ids) < 2:
                found.append((0.0, 0))
                continue
            if len(ids) > longest:
                raise InvalidInputError(f"{place}: {len(ids)} tokens, of which {self.name} reads {longest} at most")
            row = torch.tensor([ids], device=self._model.device)
            with torch.inference_mode():
                logits = self._model(input_ids=row).logits[0, :-1].float()
            found.append((float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")), len(ids) - 1))
        return found


class ArtifactSystem(System):
    """An artifact, through `pipelines`."""

    def __init__(self, path: Path, task: str) -> None:
        import pipelines

        self._pipeline = pipelines.load(path, task=task, threads=_cores())
        manifest = self._pipeline.artifact.manifest
        self.name = f"{manifest.precision} artifact"
        self.labels, self.problem_type = manifest.labels, manifest.problem_type
        self.artifact = self._pipeline.artifact

    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        answers: list[Any] = self._pipeline(inputs, **_as_served(task, parameters))
        return answers if isinstance(answers, list) else [answers]


class ServedSystem(System):
    """A running task, over HTTP: `post` sends a JSON body to a URL and returns the decoded answer."""

    def __init__(self, url: str, post: Callable[[str, Any], Any]) -> None:
        self.name = urlsplit(url).netloc
        self._url, self._post = url.rstrip("/"), post

    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        answers: list[Any] = self._post(self._url, {"inputs": inputs, "parameters": _as_served(task, parameters)})
        if not isinstance(answers, list) or len(answers) != len(inputs):
            raise ConfigurationError(f"{self._url} answered {json.dumps(answers)[:80]}; is {task} served there?")
        if task not in ("translation", "summarization"):
            return answers
        # A single text is answered with a list of its own; so is each of several generated ones.
        found = [one[0] if isinstance(one, list) and one else one for one in answers]
        key = "translation_text" if task == "translation" else "summary_text"
        if not all(isinstance(one, dict) and key in one for one in found):
            raise ConfigurationError(f"{self._url} answered {json.dumps(answers)[:80]}; is {task} served there?")
        return found


def _as_served(task: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(parameters)
    if task == "text-classification":
        given["top_k"] = None
    if task in ("translation", "summarization"):
        given["truncation"] = "longest_first"
    return given


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def task_of(url: str) -> str:
    """The task at the end of a URL such as http://127.0.0.1:8000/translation."""
    from pipelines.tasks import TASKS

    try:
        name = urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1]
    except ValueError as error:
        raise ConfigurationError(f"{url} is no URL ({error})") from None
    if name not in TASKS:
        raise ConfigurationError(f"{url} does not end in a task; give --task, one of {', '.join(TASKS)}")
    return name
