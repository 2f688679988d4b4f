"""Time limit: huggingface_hub downloads with one, but asks and uploads without, and would wait for an answer for ever.

Its setting for that is the session that it asks with (`configure_http_backend`): inside `time_limit()` a request that
has no limit gets one. Large files go through hf-xet where a Hub offers it, which has limits of its own:
HF_XET_CLIENT_READ_TIMEOUT, HF_XET_CLIENT_RETRY_MAX_ATTEMPTS.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from huggingface_hub import configure_http_backend, constants
from huggingface_hub.utils import _http
from requests.adapters import BaseAdapter

LIMIT_S = 60.0
"""What the Hub may take over an answer, and what it may leave the next bytes of a request or of an answer waiting."""


def limit_s() -> float:
    """LIMIT_S, or HF_HUB_DOWNLOAD_TIMEOUT where that is longer."""
    return max(LIMIT_S, constants.HF_HUB_DOWNLOAD_TIMEOUT)


@contextmanager
def time_limit() -> Iterator[None]:
    """Whatever the client does in here ends: a request that is given up raises requests' Timeout or ConnectionError.

    Sessions are otherwise what they were, as they may be somebody's own, or those that refuse to leave this machine.
    """
    factory = _http._GLOBAL_BACKEND_FACTORY

    def limited() -> requests.Session:
        session = factory()
        for prefix, adapter in list(session.adapters.items()):
            session.mount(prefix, _Limited(adapter))
        return session

    configure_http_backend(limited)
    try:
        yield
    finally:
        configure_http_backend(factory)


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
