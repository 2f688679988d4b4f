"""DeviceLogits: the logits of a step in device memory. Small graphs pick out of them what the host needs."""

from collections.abc import Sequence
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
    """The sessions that read logits, (rows, vocab) float32, where `memory` is that of `config`."""

    def __init__(self, vocab: int, config: SessionConfig) -> None:
        config = replace(config, cuda_graphs=False)
        self.vocab = vocab
        self.best = InferenceSession(_best_graph(), config)
        self.rows = InferenceSession(_rows_graph(), config)
        self.draw = InferenceSession(draw_graph(), config)
        self.layout = layout(vocab)
        self.memory = self.best.memory


class DeviceLogits(RankedLogits):
    """`n_rows` rows at `address`, which the next read overwrites; `places` says which were asked for, in order."""

    def __init__(self, reader: LogitsReader, address: int, n_rows: int, places: Sequence[int]) -> None:
        self.vocab = reader.vocab
        self._reader, self._address, self._n_rows = reader, address, n_rows
        self._places = np.asarray(places, np.int64)

    def rows(self, wanted: Sequence[int]) -> np.ndarray:
        binding = self._reader.rows.binding()
        self._bind(binding)
        binding.bind_cpu_input("rows", self._places[list(wanted)])
        binding.bind_output("picked", "cpu")
        self._reader.rows.run_bound(binding)
        picked: np.ndarray = binding.copy_outputs_to_cpu()[0]
        return picked

    def best(self, wanted: Sequence[int], count: int, temperatures: Sequence[float]) -> Best:
        binding, session = self._reader.best.binding(), self._reader.best
        self._bind(binding)
        binding.bind_cpu_input("rows", self._places[list(wanted)])
        binding.bind_cpu_input("count", np.asarray([count], np.int64))
        binding.bind_cpu_input("temperatures", np.asarray(temperatures, np.float32)[:, None])
        for name in session.output_names:
            binding.bind_output(name, "cpu")
        session.run_bound(binding)
        return Best(**dict(zip(session.output_names, binding.copy_outputs_to_cpu(), strict=True)))

    def draw(self, wanted: Sequence[int], temperatures: Sequence[float], shares: Sequence[float]) -> list[int | None]:
        binding, session = self._reader.draw.binding(), self._reader.draw
        self._bind(binding)
        binding.bind_cpu_input("rows", self._places[list(wanted)])
        binding.bind_cpu_input("temperatures", np.asarray(temperatures, np.float32)[:, None])
        binding.bind_cpu_input("shares", np.asarray(shares, np.float64)[:, None])
        for name, value in self._reader.layout.items():
            binding.bind_cpu_input(name, value)
        for name in session.output_names:
            binding.bind_output(name, "cpu")
        session.run_bound(binding)
        tokens, nearness = binding.copy_outputs_to_cpu()
        # NaN, of logits that are not finite, is never above: the host reports it.
        return [int(token) if near > _NEAR else None for (token,), (near,) in zip(tokens, nearness, strict=True)]

    def _bind(self, binding: "onnxruntime.IOBinding") -> None:
        shape = (self._n_rows, self.vocab)
        binding.bind_input("logits", self._reader.memory, 0, np.float32, shape, self._address)


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
