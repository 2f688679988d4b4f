"""The client of the Hub below its release 1, which asks through requests: how its sessions are made, and limited."""

from collections.abc import Callable
from typing import Any

import requests
from huggingface_hub import configure_http_backend as set_factory
from huggingface_hub.utils import _http
from requests.adapters import BaseAdapter

__all__ = ["ERROR", "factory", "limited", "set_factory"]

ERROR = requests.exceptions.RequestException
"""Of the network, and of answers that are errors."""
_Seconds = Callable[[], float]


def factory() -> Callable[[], requests.Session]:
    """What makes sessions now. The client has no public way to ask for it."""
    return _http._GLOBAL_BACKEND_FACTORY


def limited(make: Callable[[], requests.Session], limit_s: _Seconds) -> requests.Session:
    """A session of `make` that gives a limit to each request without one."""
    session = make()
    for prefix, adapter in list(session.adapters.items()):
        session.mount(prefix, _Limited(adapter, limit_s))
    return session


class _Limited(BaseAdapter):
    def __init__(self, adapter: BaseAdapter, limit_s: _Seconds) -> None:
        super().__init__()
        self._adapter, self._limit_s = adapter, limit_s

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        return self._adapter.send(request, stream, timeout or self._limit_s(), verify, cert, proxies)

    def close(self) -> None:
        self._adapter.close()
