"""Restart: the actor that runs HAProxy starts it again as soon as it has ended.

By itself Ray Serve notices after three failed health checks, and replaces the actor: clients are refused for five
seconds, and find no route for one more. Here HAProxy is back with the configuration that it had.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

RETRY_S = 0.2


def keep_haproxy_running() -> None:
    """Call it in the process of Ray Serve's HAProxyManager before it starts HAProxy."""
    from ray.serve._private.haproxy import HAProxyApi  # Ray Serve has no setting for this

    start, stop = HAProxyApi._start_and_wait_for_haproxy, HAProxyApi.stop

    async def start_watched(api: Any, *arguments: str, **options: Any) -> Any:
        process = await start(api, *arguments, **options)
        _life(api).watch(process)
        return process

    def alone(change: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """A change writes Ray's file, which no process may read before it is rewritten, and starts one."""

        async def changed(api: Any) -> None:
            async with _life(api).changing:
                await change(api)

        return changed

    async def stop_for_good(api: Any) -> None:
        _life(api).is_over = True
        await stop(api)

    HAProxyApi._start_and_wait_for_haproxy = start_watched
    for name in ("reload", "disable", "enable"):
        setattr(HAProxyApi, name, alone(getattr(HAProxyApi, name)))
    HAProxyApi.stop = stop_for_good


class _Life:
    """Of the HAProxy processes that one HAProxyApi starts, one after the other."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._watching: set[asyncio.Task[None]] = set()
        self.changing = asyncio.Lock()
        """Held while the file is written and a reload replaces the process, whose end is then no accident."""
        self.is_over = False

    def watch(self, process: Any) -> None:
        """Start another process when this one ends before it is replaced."""
        watching = asyncio.create_task(self._watch(process))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    async def _watch(self, process: Any) -> None:
        await process.wait()
        async with self.changing:
            while process is self._api._proc and not self.is_over:
                try:
                    self._api._proc = await self._api._start_and_wait_for_haproxy()
                except (RuntimeError, OSError):  # its log has the reason; a full disk takes neither log nor file
                    await asyncio.sleep(RETRY_S)
                else:
                    self._api._retire_log_files(process)  # Ray Serve keeps those of the last ten


def _life(api: Any) -> _Life:
    life: _Life | None = getattr(api, "sextet_life", None)
    if life is None:
        life = api.sextet_life = _Life(api)
    return life
