"""Encoder: the tokenizer and the graph of a model that reads a text once; EncoderPipeline: a classifier built on it."""

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Encoding

from pipelines.errors import ArtifactError, InvalidInputError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.elastic_session import ElasticSession
from pipelines.runtime.padding import EncoderRow, pad
from pipelines.runtime.session import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer
from pipelines.scheduling.cost_model import measure, shapes_within
from pipelines.scheduling.padded import PaddedScheduler
from pipelines.scheduling.scheduler import BatchingConfig, OnBatch, OutputT, QueueConfig, unreported
from pipelines.tasks.pipeline import InputT, ParametersT, Pipeline

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Encoder:
    """Encodings to rows, rows to the graph's outputs; thread-safe."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        graph = artifact.graph("model")
        self.tokenizer = Tokenizer(artifact)
        self._session = ElasticSession.open(graph, config)
        if unknown := [name for name in self._session.input_names if name not in _INPUTS]:
            raise ArtifactError(f"{graph} takes {', '.join(unknown)}; an encoder takes {', '.join(_INPUTS)}")
        settings = self.tokenizer.settings
        self._pad_token_id = settings.pad_token_id
        self._types = settings.token_type_ids and "token_type_ids" in self._session.input_names

    def rows(self, encodings: Sequence[Encoding]) -> list[EncoderRow]:
        """One row per encoding; raises InvalidInputError for one without tokens, which no graph can run."""
        if not all(map(len, encodings)):
            raise InvalidInputError("has no tokens; allowed: a text of at least one", ("inputs",))
        return [
            EncoderRow(
                encoding,
                np.array(encoding.ids, np.int64),
                np.array(encoding.type_ids, np.int64) if self._types else None,
            )
            for encoding in encodings
        ]

    def run(self, rows: Sequence[EncoderRow]) -> dict[str, np.ndarray]:
        """The graph's outputs for a batch, in float32: (rows, ...), or (rows, longest row, ...) with padding."""
        outputs = self._session.run(pad(rows, self._pad_token_id, self._session.input_names))
        return {name: output.astype(np.float32, copy=False) for name, output in outputs.items()}

    def calibrate(self, lengths: Iterable[int]) -> None:
        """Find out which rows, of ascending `lengths` in tokens, are worth all threads."""
        names = self._session.input_names
        self._session.calibrate(lambda n_tokens: pad([self.blank_row(n_tokens)], self._pad_token_id, names), lengths)

    def blank_row(self, n_tokens: int) -> EncoderRow:
        """A row that costs what every row of so many tokens costs, and says nothing."""
        return EncoderRow(Encoding(), np.full(n_tokens, self._pad_token_id, np.int64))


class EncoderPipeline(Pipeline[InputT, ParametersT, EncoderRow, OutputT]):
    """A task whose `forward` is one run of an encoder."""

    def __init__(self, artifact: ModelArtifact, config: SessionConfig) -> None:
        super().__init__(artifact)
        self._encoder = Encoder(artifact, config)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._encoder.tokenizer

    def scheduler(
        self,
        batching: BatchingConfig | None = None,
        queue: QueueConfig | None = None,
        on_batch: OnBatch = unreported,
    ) -> PaddedScheduler[EncoderRow, OutputT]:
        batching = batching or BatchingConfig()
        longest = self._encoder.tokenizer.settings.max_length
        shapes = list(shapes_within(longest, batching.max_batch_tokens, batching.max_batch_size))
        self._encoder.calibrate(sorted({tokens for _, tokens in shapes}))
        cost = measure(self.forward, self._encoder.blank_row, shapes, batching.concurrency)
        return PaddedScheduler(self.forward, batching, cost, queue, on_batch)
