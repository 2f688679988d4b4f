"""Living with torch, transformers, optimum and onnxruntime: their output, their process-wide state, their errors.

Keeping them quiet, and tracing a model, change state of the whole process: stdout, logging, warnings, classes of
transformers. `exclusive` is the lock for such changes: a second thread waits until the first one has put everything
back. Exports in several threads of one process therefore run one after the other; processes run side by side.
"""

import errno
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from pipelines.runtime.package import runtime_package

Progress = Callable[[str], None]
"""Takes a line for the user."""
exclusive = threading.RLock()
"""Held by whoever changes state of the whole process. The thread that holds it may take it again."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def quiet(progress: Progress) -> Iterator[Progress]:
    """Within it, the frameworks reach the terminal with exceptions only; one thread at a time.

    Yields `progress` for use within: its lines still reach the terminal. Raises ConfigurationError without a runtime.
    """
    runtime_package()
    import onnxruntime

    with exclusive:
        streams = (sys.stdout, sys.stderr)

        def heard(line: str) -> None:
            with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
                progress(line)

        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        onnxruntime.set_default_logger_severity(4)  # fatal; the binding cannot tell the former value
        sink = io.StringIO()
        try:
            with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
                warnings.simplefilter("ignore")
                yield heard
        finally:
            onnxruntime.set_default_logger_severity(2)
            logging.disable(disabled)


def full_disk(error: BaseException | None) -> OSError | None:
    """The full disk behind an error, None where it has another cause.

    Libraries in C++ and Rust report a full disk as an error of their own, with the text or the number of the OSError.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        for number in FULL:
            if os.strerror(number) in str(error) or f"code: {number}," in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None
