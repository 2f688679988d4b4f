"""BatchMetrics: what the batches of a replica looked like, for Prometheus through Ray's own metrics endpoint.

    sextet_batch_rows                 histogram of rows per batch
    sextet_batch_queue_seconds        histogram of how long a batch's oldest row had waited
    sextet_batch_inference_seconds    histogram of the seconds of a forward
    sextet_tokens, sextet_padded_tokens    counters of tokens read; 1 - rate(tokens) / rate(padded): waste of padding
    sextet_generated_tokens           counter of tokens written

Ray adds the application, the deployment and the replica. Recorded once a batch, not once a request: about 25 us.
"""

from ray.serve.metrics import Counter, Histogram

from pipelines.scheduling.scheduler import BatchReport

ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]


class BatchMetrics:
    """Called with each batch that ended."""

    def __init__(self) -> None:
        self._rows = Histogram("sextet_batch_rows", "Rows of a batch.", ROWS)
        self._queue_s = Histogram("sextet_batch_queue_seconds", "How long its oldest row had waited.", SECONDS)
        self._inference_s = Histogram("sextet_batch_inference_seconds", "How long its forward took.", SECONDS)
        self._tokens = Counter("sextet_tokens", "Tokens that the model read, without padding.")
        self._padded_tokens = Counter("sextet_padded_tokens", "Tokens that the model read, with padding.")
        self._generated_tokens = Counter("sextet_generated_tokens", "Tokens that the model wrote.")

    def __call__(self, batch: BatchReport) -> None:
        self._rows.observe(batch.rows)
        self._queue_s.observe(batch.queue_s)
        self._inference_s.observe(batch.inference_s)
        self._tokens.inc(batch.read_tokens)
        if batch.written_tokens:
            self._generated_tokens.inc(batch.written_tokens)
        self._padded_tokens.inc(batch.padded_tokens)
