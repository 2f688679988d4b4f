"""Task: the definition of one NLP task. Everything that lists tasks derives from these objects.

A task is one file in this folder, or one module of another package that names its `Task` under the entry point group
`sextet.tasks`. Nothing here imports a framework: transformers' classes are named as text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Language = Literal["en", "ko"]


@dataclass(frozen=True)
class Example:
    """One request, as the Hugging Face task API takes it; `language` is that of the text."""

    language: Language
    inputs: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text that is asked, cut to a line."""
        text = next(iter(self.inputs.values())) if isinstance(self.inputs, dict) else self.inputs
        return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Head:
    """Which transformers models can do a task.

    `auto_class` loads them; the name of a fitting class ends with one of `classes`. `peft_type` is PEFT's name of the
    task. `modules` are the new layers of a head, which are trained in full beside a LoRA adapter.
    """

    auto_class: str
    classes: tuple[str, ...]
    peft_type: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """One task.

    `name` is the Hugging Face pipeline id. `pipeline` is a subclass of `pipelines.tasks.pipeline.Pipeline`, whose
    `parameters_type` describes the parameters. `input_type` and `answer_type` are those of one input, as JSON has them
    (pipelines.schema). `title` and `summary` are by language.

    `examples`: the first one demonstrates the task after a start; there is at least one per language.
    `text_fields`: the texts of one input; one name stands for a plain string, several for an object with these keys.
    `columns` and `optional_columns` are those of a labelled row, for fine-tuning and evaluation.
    `labelled`: the checkpoint's config names the labels. `generates`: answers are decoded token by token.
    `guided`: its pipeline takes a grammar compiler, and holds answers to grammars.
    `streams`: one input may be answered by server-sent events.
    `wraps_answer`: the answer to one text is a list in a list, because clients keep only the first element.
    `root_paths`: paths at the root of a server that its clients expect this task at, each with all paths below it.
    `tensor`: the name of the input tensor in the Open Inference Protocol where `text_fields` has one name.
    `protocols`: those of this task besides the ones of all tasks, by their names in deployments.protocols.
    `generate_key`: the parameter under which `model.generate` arguments stand; None where they stand beside others.
    `instruction` tells a decoder-only instruct model to do the task; `{text}` in it is the input. None: it needs none.
    `client`: the method of huggingface_hub's InferenceClient that asks the task; None where it has none.
    `form`: the parameters of the console's form, in its order; None: all numbers, texts, choices and switches.
    `chats`: first messages of a conversation, for a task whose `protocols` have a chat; their parameters are that
    protocol's. Empty: the task has no chat.
    `in_words(answer)` is an answer of the Hugging Face task API in a few words.
    """

    name: str
    pipeline: Any
    head: Head
    input_type: Any
    answer_type: Any
    title: Mapping[Language, str]
    summary: Mapping[Language, str]
    examples: tuple[Example, ...]
    columns: tuple[str, ...]
    in_words: Callable[[Any], str]
    optional_columns: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ("text",)
    labelled: bool = False
    generates: bool = False
    guided: bool = False
    streams: bool = False
    wraps_answer: bool = False
    root_paths: tuple[str, ...] = ()
    tensor: str = "args"
    generate_key: str | None = None
    instruction: str | None = None
    protocols: tuple[str, ...] = ()
    client: str | None = None
    form: tuple[str, ...] | None = None
    chats: tuple[Example, ...] = ()

    def as_input(self, texts: Sequence[str]) -> Any:
        """`texts`, one for each of `text_fields`, as one input of the Hugging Face task API."""
        return texts[0] if len(self.text_fields) == 1 else dict(zip(self.text_fields, texts, strict=True))

    def texts(self, example: Example) -> dict[str, str]:
        """The texts of an example by the names of `text_fields`."""
        return dict(example.inputs) if isinstance(example.inputs, Mapping) else {self.text_fields[0]: example.inputs}

    def bounded(self, max_new_tokens: int) -> dict[str, Any]:
        """Parameters for a greedy answer of at most so many tokens; empty where nothing is generated."""
        if not self.generates:
            return {}
        arguments = {"max_new_tokens": max_new_tokens, "do_sample": False}
        return arguments if self.generate_key is None else {self.generate_key: arguments}
