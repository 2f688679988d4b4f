"""Streams: long generations under way while something changes, each read to its end or to where it is cut."""

import json
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from benchmarks.load.asker import Asker

ANSWER_S = 900.0  # more than a stream takes


@dataclass
class Stream:
    """One generation; `outcome` says how it ended."""

    tokens: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0
    outcome: str = "not begun"

    @property
    def lasted_s(self) -> float:
        return max(0.0, self.ended_at - self.began_at)


class Streams:
    """`count` clients inside a `with` block, which ends when all streams have. Each asks for exactly so many tokens."""

    def __init__(self, port: int, path: str, count: int, tokens: int) -> None:
        self.all = [Stream() for _ in range(count)]
        self._port, self._path, self._tokens = port, path, tokens
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def cut(self) -> list[Stream]:
        """Those that ended before their last token."""
        return [stream for stream in self.all if stream.outcome != "whole"]

    @property
    def are_under_way(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def summary(self) -> dict[str, Any]:
        return {
            "streams": len(self.all),
            "cut": len(self.cut),
            "outcomes": dict(Counter(stream.outcome for stream in self.all)),
            "lasted_s": sorted(stream.lasted_s for stream in self.all),
            "tokens": sorted(stream.tokens for stream in self.all),
        }

    def _read(self, number: int) -> None:
        stream, asker = self.all[number], Asker(self._port, ANSWER_S)
        parameters = {"max_new_tokens": self._tokens, "min_new_tokens": self._tokens, "do_sample": False}
        body = {"inputs": f"Story number {number}. Once upon a time", "parameters": parameters, "stream": True}
        stream.began_at = perf_counter()
        try:
            for event in asker.events(self._path, json.dumps(body).encode()):
                said = json.loads(event)
                if "error" in said:
                    stream.outcome = f"error event: {said['error']}"
                    break
                stream.tokens += 1
            else:
                stream.outcome = "whole" if stream.tokens == self._tokens else "ended early"
        except (OSError, HTTPException, ValueError) as error:
            stream.outcome = f"{type(error).__name__}: {error}"
        stream.ended_at = perf_counter()
        asker.close()


def tokens_within(duration_s: float, tokens: Sequence[int], lasted_s: Sequence[float]) -> int:
    """How many tokens take `duration_s`, from two measurements: of so many tokens, and how long they took.

    A token takes longer the more are before it, by the same time for each of them.
    """
    (few, many), (few_s, many_s) = tokens, lasted_s
    more_s = max(0.0, (many_s / many - few_s / few) / (many - few))  # n tokens take first_s * n + more_s * n^2
    first_s = max(0.0, many_s / many - more_s * many)
    return int(2 * duration_s / (first_s + math.sqrt(first_s**2 + 4 * more_s * duration_s)))
