"""InputDatasource: the inputs as Ray Data reads them, a task for each source, a block for each part."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from batch.parts import Place, Reading
from batch.scorer import table_of
from batch.sources import Source


class InputDatasource(Datasource):  # type: ignore[misc]  # Ray has no types
    """Parts at places that are `finished` come without their rows."""

    def __init__(self, sources: Sequence[Source], reading: Reading, finished: frozenset[Place]) -> None:
        super().__init__()
        self._sources, self._reading, self._finished = sources, reading, finished

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [
            ReadTask(partial(_blocks, index, source, self._reading, self._of(index)), unknown)
            for index, source in enumerate(self._sources)
        ]

    def _of(self, index: int) -> frozenset[Place]:
        return frozenset(place for place in self._finished if place[0] == index)


def _blocks(index: int, source: Source, reading: Reading, finished: frozenset[Place]) -> Iterator[pyarrow.Table]:
    for part in reading.parts(index, source, finished):
        yield table_of(part, is_finished=part.place in finished)
