"""Time limit: huggingface_hub downloads with one, but asks and uploads without, and would wait for an answer for ever.

The client makes its sessions by a function that `configure_http_backend` sets. Inside `time_limit()` a request that has
no limit gets one. The client has no public way to ask for the former function, hence the private name. Large files go
through hf-xet where a Hub offers it, which has limits of its own: HF_XET_CLIENT_READ_TIMEOUT,
HF_XET_CLIENT_RETRY_MAX_ATTEMPTS.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import requests
from huggingface_hub import configure_http_backend, constants
from huggingface_hub.utils import _http
from requests.adapters import BaseAdapter

LIMIT_S = 60.0
"""The longest wait for an answer of the Hub, and for the next bytes of a request or of an answer."""
_lock = threading.Lock()
_former: list[Callable[[], requests.Session]] = []
"""The former setting, once for each thread that is inside."""


def limit_s() -> float:
    """LIMIT_S, or HF_HUB_DOWNLOAD_TIMEOUT where that is longer."""
    return max(LIMIT_S, constants.HF_HUB_DOWNLOAD_TIMEOUT)


@contextmanager
def time_limit() -> Iterator[None]:
    """Ends each request of the client that stalls: it raises requests' Timeout or ConnectionError.

    The client's setting belongs to the whole process. The first thread that enters sets it, the last one that leaves
    puts the former setting back. Sessions are otherwise what the former setting makes: somebody's own, or such as
    refuse to leave this machine.
    """
    with _lock:
        if not _former:
            _former.append(_http._GLOBAL_BACKEND_FACTORY)
            configure_http_backend(partial(_limited, _former[0]))
        else:
            _former.append(_former[0])
    try:
        yield
    finally:
        with _lock:
            factory = _former.pop()
            if not _former:
                configure_http_backend(factory)


def _limited(factory: Callable[[], requests.Session]) -> requests.Session:
    session = factory()
    for prefix, adapter in list(session.adapters.items()):
        session.mount(prefix, _Limited(adapter))
    return session


class _Limited(BaseAdapter):
    def __init__(self, adapter: BaseAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        return self._adapter.send(request, stream, timeout or limit_s(), verify, cert, proxies)

    def close(self) -> None:
        self._adapter.close()
