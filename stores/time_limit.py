"""Time limit: huggingface_hub downloads with one, but asks and uploads without, and would wait for an answer for ever.

The client makes its sessions by a function that can be set. Inside `time_limit()` a request that has no limit gets one.
Large files go through hf-xet where a Hub offers it, which has limits of its own: HF_XET_CLIENT_READ_TIMEOUT,
HF_XET_CLIENT_RETRY_MAX_ATTEMPTS.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import huggingface_hub
from huggingface_hub import constants

LIMIT_S = 60.0
"""The longest wait for an answer of the Hub, and for the next bytes of a request or of an answer."""
_by_requests = huggingface_hub.__version__.startswith("0.")
_client: Any = import_module(f"stores.{'requests' if _by_requests else 'httpx2'}_client")
NETWORK_ERROR: type[Exception] = _client.ERROR
"""What the client raises where the Hub cannot be reached, or answers with an error."""
_lock = threading.Lock()
_former: list[Callable[[], Any]] = []
"""The former setting, once for each thread that is inside."""


def limit_s() -> float:
    """LIMIT_S, or HF_HUB_DOWNLOAD_TIMEOUT where that is longer."""
    return max(LIMIT_S, constants.HF_HUB_DOWNLOAD_TIMEOUT)


@contextmanager
def time_limit() -> Iterator[None]:
    """Ends each request of the client that stalls: it raises NETWORK_ERROR.

    The client's setting belongs to the whole process. The first thread that enters sets it, the last one that leaves
    puts the former setting back. Sessions are otherwise what the former setting makes: somebody's own, or such as
    refuse to leave this machine.
    """
    with _lock:
        if not _former:
            _former.append(_client.factory())
            _client.set_factory(partial(_client.limited, _former[0], limit_s))
        else:
            _former.append(_former[0])
    try:
        yield
    finally:
        with _lock:
            factory = _former.pop()
            if not _former:
                _client.set_factory(factory)
