"""Host threads: they read, tokenize and answer requests, so that nothing blocks the event loop.

in bursts       a few sentences, while the model is busy: one thread takes all that wait, and wakes the loop once
two threads     bodies above a kilobyte, and answers of many tokens
one thread      bodies above 64 KB: small ones never wait for them
some threads    requests whose answers are held to a grammar. One new grammar is compiled at a time, and takes two
                seconds at most; those that are known never wait for it

A few sentences come here only while the model is busy: else TaskServer handles them on the loop, as a switch to a
thread and back takes longer than the work.

That is on a CPU, whose cores compute forwards. On a GPU the cores of a replica have nothing else to do: `grow`.
"""

import asyncio
import ctypes
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pipelines.errors import OverloadedError

T = TypeVar("T")
SMALL_BODY_BYTES = 1024  # tokenized in half a millisecond
LARGE_BODY_BYTES = 64 * 1024  # tokenized in tens of milliseconds
SMALL_ANSWER_TOKENS = 512  # read, or written and described
BULK_BYTES = 16 * 2**20  # of large bodies that wait for their thread: about ten seconds of tokenizing
COMPILERS = 8
MAX_COMPILING = 64  # requests with a grammar that wait for their thread: two seconds each at most, mostly milliseconds
BURST = 16  # jobs after which the loop is told, at the latest

Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


def give_memory_back() -> None:
    """Return to the system what the process has freed: a model's file, its parsed graph and unpacked weights.

    glibc keeps such memory for what comes next; 40 MiB of a replica are never used again. Other C libraries keep none.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class HostThreads:
    """The threads of one replica; they start when they are needed first."""

    def __init__(self) -> None:
        self._workers = 2
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="host")
        self._bulk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bulk")
        self._bulk_bytes = 0
        self._compiler = ThreadPoolExecutor(COMPILERS, thread_name_prefix="compile")
        self._compiling = 0
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._bursts: list[threading.Thread] = []

    def grow(self, workers: int) -> None:
        """Have `workers` threads for bodies above a kilobyte, and half as many for bursts; never fewer than before.

        Tokenizers release the GIL, so the threads work at once.
        """
        if workers > self._workers:
            self._workers = workers
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="host")

    async def read(self, work: Callable[[], T], body_bytes: int) -> T:
        """Read a body of that size and tokenize its inputs; raises OverloadedError where too many large ones wait."""
        if body_bytes <= SMALL_BODY_BYTES:
            return await self._in_burst(work)
        if body_bytes <= LARGE_BODY_BYTES:
            return await _in(self._pool, work)
        if self._bulk_bytes and self._bulk_bytes + body_bytes > BULK_BYTES:
            raise OverloadedError(
                f"{self._bulk_bytes} bytes of large bodies wait to be tokenized and the request has {body_bytes}; "
                f"allowed: {BULK_BYTES} together",
                retry_after_s=5.0,
                reason="large_bodies",
            )
        self._bulk_bytes += body_bytes
        try:
            return await _in(self._bulk, work)
        finally:
            self._bulk_bytes -= body_bytes

    async def compile(self, work: Callable[[], T]) -> T:
        """Compile a grammar and tokenize; raises OverloadedError where too many wait."""
        if self._compiling >= MAX_COMPILING:
            problem = f"{self._compiling} grammars wait to be compiled; allowed: {MAX_COMPILING}"
            raise OverloadedError(problem, retry_after_s=5.0)
        self._compiling += 1
        try:
            return await _in(self._compiler, work)
        finally:
            self._compiling -= 1

    async def answer(self, work: Callable[[], T], body_bytes: int) -> T:
        """Write the answer to a body of that size."""
        return await _in(self._pool if body_bytes <= LARGE_BODY_BYTES else self._bulk, work)

    async def describe(self, work: Callable[[], T]) -> T:
        """Describe a token with its alternatives, which takes as long as a short request."""
        return await _in(self._pool, work)

    async def _in_burst(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((work, done, loop))
        if len(self._bursts) < self._workers // 2:
            self._bursts.append(threading.Thread(target=_run, args=(self._jobs,), name="burst", daemon=True))
            self._bursts[-1].start()
        return await done


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    def guarded() -> T:
        try:
            return work()
        except StopIteration as error:  # a future cannot carry it: the request would wait for ever
            raise RuntimeError("an iterator ended early") from error

    return await asyncio.get_running_loop().run_in_executor(pool, guarded)


def _run(jobs: SimpleQueue[Job]) -> None:
    """The life of a burst thread."""
    while True:
        burst = [jobs.get()]
        try:
            while len(burst) < BURST:
                burst.append(jobs.get_nowait())
        except Empty:
            pass
        outcomes = [(done, *_outcome(work)) for work, done, _ in burst if not done.cancelled()]
        try:
            burst[0][2].call_soon_threadsafe(_tell, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except StopIteration as error:
        failure = RuntimeError("an iterator ended early")
        failure.__cause__ = error
        return None, failure
    except Exception as error:
        return None, error


def _tell(outcomes: "list[tuple[asyncio.Future[Any], Any, Exception | None]]") -> None:
    for done, result, error in outcomes:
        if done.done():  # its client left meanwhile
            continue
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
