"""Systems: a checkpoint in PyTorch, an artifact in ONNX Runtime or a running task, asked in one way.

`answers` takes the inputs and parameters of `transformers.pipeline` of the task, and answers in its shapes.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from checkpoints.checkpoint import max_length as longest_input
from pipelines.errors import ConfigurationError, InvalidInputError, SextetError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.tasks import TASKS

Loss = tuple[float, int]
"""The summed negative logprob of a text's tokens after the first, and the number of these tokens."""
_CHUNK = 32  # inputs per call of a system


class System(ABC):
    """`name` heads its column. `labels` are those that it can answer; empty where it has none or cannot tell them."""

    in_torch: ClassVar[bool] = False
    name: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def answers(
        self, task: str, inputs: Sequence[Any], parameters: Mapping[str, Any], where: Sequence[str]
    ) -> list[Any]:
        """One answer per input, in order.

        Raises InvalidInputError naming the first of `where` whose input cannot be answered, such as one that is too
        long.
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
        """The error for some inputs: it names the first that also fails by itself, if there is one."""
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

    def losses(self, task: str, texts: Sequence[str], max_length: int | None, where: Sequence[str]) -> list[Loss]:
        """The loss of each text, or of its last `max_length` tokens: the logprobs of the text as a prompt."""
        parameters = {"max_new_tokens": 1, "decoder_input_details": True, "truncate": max_length, "do_sample": False}
        given = {name: value for name, value in parameters.items() if value is not None}
        answers = self.answers(task, texts, given, where)
        known = [[one["logprob"] for one in answer[0]["details"]["prefill"][1:]] for answer in answers]
        return [(-sum(logprobs), len(logprobs)) for logprobs in known]


class TorchSystem(System):
    """A model of transformers, through transformers' pipeline."""

    in_torch = True

    def __init__(self, name: str, task: str, model: Any, tokenizer: Any) -> None:
        import transformers

        self.name = name
        self.problem_type = model.config.problem_type
        if TASKS[task].labelled:
            self.labels = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
        self._model, self._tokenizer = model, tokenizer
        self._pipeline = transformers.pipeline(task, model=model, tokenizer=tokenizer, device=model.device)

    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        given = {"batch_size": _CHUNK, **parameters}
        fields = TASKS[task].text_fields
        if len(fields) > 1:
            answers = self._pipeline(**{name: [one[name] for one in inputs] for name in fields}, **given)
        else:
            answers = self._pipeline(inputs, **given)
        return answers if isinstance(answers, list) else [answers]  # a single question is answered without a list

    def losses(self, task: str, texts: Sequence[str], max_length: int | None, where: Sequence[str]) -> list[Loss]:
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
    """An artifact, through `pipelines`: on a CPU, but one with packed rows on the device that it is made for."""

    def __init__(self, path: Path, task: str) -> None:
        import pipelines

        manifest = ModelArtifact.open(path, task=task).manifest
        device: Any = manifest.device if manifest.rows == "packed" else "cpu"
        self._pipeline = pipelines.load(path, task=task, device=device)
        self.name = f"{manifest.precision} artifact"
        self.labels, self.problem_type = manifest.labels, manifest.problem_type
        self.artifact = self._pipeline.artifact

    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        answers: list[Any] = self._pipeline(inputs, **parameters)
        return answers if isinstance(answers, list) else [answers]


class ServedSystem(System):
    """A running task, over HTTP: `post` sends a JSON body to a URL and returns the decoded answer."""

    def __init__(self, url: str, post: Callable[[str, Any], Any]) -> None:
        self.name = urlsplit(url).netloc
        self._url, self._post = url.rstrip("/"), post

    def _answer(self, task: str, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        answers: list[Any] = self._post(self._url, {"inputs": inputs, "parameters": dict(parameters)})
        if not isinstance(answers, list) or len(answers) != len(inputs):
            raise ConfigurationError(f"{self._url} answered {json.dumps(answers)[:80]}; is {task} served there?")
        key = getattr(TASKS[task].pipeline, "answer_key", None)
        if key is None:
            return answers
        # A single text is answered with a list, and so is each text that has several answers.
        found = [one[0] if isinstance(one, list) and one else one for one in answers]
        if not all(isinstance(one, dict) and key in one for one in found):
            raise ConfigurationError(f"{self._url} answered {json.dumps(answers)[:80]}; is {task} served there?")
        return found


def task_of(url: str) -> str:
    """The task at the end of a URL such as http://127.0.0.1:8000/translation."""
    try:
        name = urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1]
    except ValueError as error:
        raise ConfigurationError(f"{url} is no URL ({error})") from None
    if name not in TASKS:
        raise ConfigurationError(f"{url} does not end in a task; give --task, one of {', '.join(TASKS)}")
    return name
