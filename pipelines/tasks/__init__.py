"""The six tasks, and those of installed packages: `TASKS["translation"]` is a `Task`."""

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points

from pipelines.errors import ConfigurationError
from pipelines.tasks import (
    question_answering,
    summarization,
    text_classification,
    text_generation,
    token_classification,
    translation,
)
from pipelines.tasks.task import Task

ENTRY_POINTS = "sextet.tasks"


class Registry(Mapping[str, Task]):
    """Tasks by name, in the order of registration."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def register(self, task: Task) -> None:
        """Add a task; raises ConfigurationError for a name that another task has."""
        if self._tasks.setdefault(task.name, task) is not task:
            raise ConfigurationError(f"the task {task.name} is registered twice")

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


TASKS = Registry()
for _module in (
    text_classification,
    question_answering,
    token_classification,
    translation,
    summarization,
    text_generation,
):
    TASKS.register(_module.TASK)
for _found in entry_points(group=ENTRY_POINTS):
    TASKS.register(_found.load())
