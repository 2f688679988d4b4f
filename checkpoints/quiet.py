"""Quiet: the exporters' warnings, log lines and progress bars, kept from the user."""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

Progress = Callable[[str], None]


@contextmanager
def quiet(progress: Progress) -> Iterator[Progress]:
    """Within it, torch, transformers, optimum and onnxruntime reach the terminal with exceptions only.

    Yields `progress` for use within: it still reaches its reader.
    """
    import onnxruntime

    streams = (sys.stdout, sys.stderr)

    def aloud(line: str) -> None:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            progress(line)

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(4)  # fatal; the binding has no way to ask for the former value
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield aloud
    finally:
        onnxruntime.set_default_logger_severity(2)
        logging.disable(disabled)
