"""DeviceLogits: the logits of a step in device memory. Small graphs pick out of them what the host needs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

from pipelines.generation.decoding.step_logits import Best, RankedLogits
from pipelines.generation.slots.device.draw import draw_graph, layout
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.small_graph import Node, Port, small_graph

_NEAR = 4e-6  # an upper bound of the error of a share of summed exponentials in float32, of the host's and a device's
_FLOAT, _INT64 = np.dtype(np.float32), np.dtype(np.int64)


class LogitsReader:
    """The sessions that read logits, (rows, vocab) float32, where `memory` is that of `config`, and room for them."""

    def __init__(self, vocab: int, config: SessionConfig) -> None:
        config = replace(config, cuda_graphs=False)
        self.vocab = vocab
        self.best = InferenceSession(_best_graph(), config)
        self.rows = InferenceSession(_rows_graph(), config)
        self.draw = InferenceSession(draw_graph(), config)
        self.layout = layout(vocab)
        self.memory = self.best.memory
        self._room: tuple[int, onnxruntime.OrtValue | None] = 0, None  # how many rows fit

    def room(self, rows: int) -> int:
        """The address of memory for some rows of logits, which the next read overwrites."""
        import onnxruntime

        fitting, value = self._room
        if value is None or fitting < rows:
            make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
            with self.best.share():
                value = make([rows, self.vocab], np.float32, self.memory, 0)
            self._room = rows, value
        return int(value.data_ptr())


class DeviceLogits(RankedLogits):
    """`n_rows` rows at `address`, which the next read overwrites; `places` says which were asked for, in order."""

    def __init__(self, reader: LogitsReader, address: int, n_rows: int, places: Sequence[int]) -> None:
        self.vocab = reader.vocab
        self._reader, self._address, self._n_rows = reader, address, n_rows
        self._places = np.asarray(places, np.int64)

    def rows(self, wanted: Sequence[int]) -> np.ndarray:
        (picked,) = self._run(self._reader.rows, {"rows": self._places[list(wanted)]})
        return picked

    def best(self, wanted: Sequence[int], count: int, temperatures: Sequence[float]) -> Best:
        feeds: dict[str, np.ndarray] = {
            "rows": self._places[list(wanted)],
            "count": np.asarray([count], np.int64),
            "temperatures": np.asarray(temperatures, np.float32)[:, None],
        }
        session = self._reader.best
        return Best(**dict(zip(session.output_names, self._run(session, feeds), strict=True)))

    def draw(self, wanted: Sequence[int], temperatures: Sequence[float], shares: Sequence[float]) -> list[int | None]:
        feeds: dict[str, np.ndarray] = {
            "rows": self._places[list(wanted)],
            "temperatures": np.asarray(temperatures, np.float32)[:, None],
            "shares": np.asarray(shares, np.float64)[:, None],
        }
        tokens, nearness = self._run(self._reader.draw, feeds | self._reader.layout)
        # NaN, of logits that are not finite, is never above: the host reports it.
        return [int(token) if near > _NEAR else None for (token,), (near,) in zip(tokens, nearness, strict=True)]

    def _run(self, session: InferenceSession, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of a graph that reads the logits, in the host's memory."""
        binding, shape = session.binding(), (self._n_rows, self.vocab)
        with session.share():
            binding.bind_input("logits", self._reader.memory, 0, np.float32, shape, self._address)
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name in session.output_names:
                binding.bind_output(name, "cpu")
            session.run_bound(binding)
            outputs: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return outputs


def _best_graph() -> bytes:
    """The fields of `Best` for some `rows` of `logits`; `temperatures` are (rows, 1)."""
    return small_graph(
        [
            Node("Gather", ["logits", "rows"], ["picked"], {"axis": 0}),
            Node("TopK", ["picked", "count"], ["scores", "tokens"], {"axis": -1, "largest": 1, "sorted": 1}),
            Node("ReduceLogSumExp", ["picked"], ["total"], {"axes": [1], "keepdims": 0}),
            Node("Div", ["picked", "temperatures"], ["over"]),
            Node("ReduceLogSumExp", ["over"], ["tempered"], {"axes": [1], "keepdims": 0}),
        ],
        [
            Port("logits", _FLOAT, 2),
            Port("rows", _INT64, 1),
            Port("count", _INT64, 1),
            Port("temperatures", _FLOAT, 2),
        ],
        [Port("scores", _FLOAT, 2), Port("tokens", _INT64, 2), Port("total", _FLOAT, 1), Port("tempered", _FLOAT, 1)],
    )


def _rows_graph() -> bytes:
    """Some `rows` of `logits`."""
    return small_graph(
        [Node("Gather", ["logits", "rows"], ["picked"], {"axis": 0})],
        [Port("logits", _FLOAT, 2), Port("rows", _INT64, 1)],
        [Port("picked", _FLOAT, 2)],
    )
