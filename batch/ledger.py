"""Ledger: the output of a run, what it was made from, and which parts of it are finished.

    scores.jsonl                one file, in the order of the input; there once all parts are
    scores.jsonl.parts/         until then: 00000-00000.jsonl, a file for each part, beside those of its bad rows
    scores.bad.jsonl            the bad rows of all parts, in the same order; absent where there are none
    scores.batch.json           the plan: what the output is made from; at the end also what came of it

    scores-*.jsonl              by shard: scores-00000-00000.jsonl, a file for each part, is part of the output at once

Every file appears under its name when it is complete, and a part's own comes last. So what is killed at any moment
leaves parts that are whole, or not there. The outputs of a URL are objects, which storage replaces whole.
"""

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from batch.args import SHARD, BatchArgs
from batch.lines import join_parquet
from batch.parts import Place
from batch.scorer import Finished
from batch.storage import Storage
from pipelines.errors import ConfigurationError

_PART = r"(\d{5,})-(\d{5,})"
BAD = ".bad.jsonl"


class Ledger:
    """The files of one output. `finished` are the places of its parts that are there."""

    def __init__(self, args: BatchArgs) -> None:
        self._storage = Storage.of(args.output)
        name = PurePosixPath(self._storage.path)
        self._output, self._suffix, self._is_sharded = str(name), args.suffix, args.is_sharded
        stem = name.name.removesuffix(args.suffix).replace(SHARD, "").rstrip("-_.") or "output"
        self._plan, self._all_bad = str(name.with_name(f"{stem}.batch.json")), str(name.with_name(f"{stem}{BAD}"))
        self.bad_name = self._storage.named(self._all_bad)
        self._folder = str(name.parent) if args.is_sharded else f"{name}.parts"
        before, after = name.name.removesuffix(args.suffix).split(SHARD) if args.is_sharded else ("", "")
        self._names = (before, after)
        self._shown = args.output
        self.finished: frozenset[Place] = frozenset()
        self._bad: set[Place] = set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other run on this machine writes the output meanwhile; raises ConfigurationError where one does."""
        lock = self._storage.local(self._plan)
        if lock is None:
            yield
            return
        with self._storage.explained():
            lock.parent.mkdir(parents=True, exist_ok=True)
            file: IO[str] = lock.with_name(f".{lock.name}.lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(f"another sextet batch writes {self._shown}; allowed: one at a time") from None
            try:
                yield
            finally:
                Path(file.name).unlink(missing_ok=True)

    def open(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """Begin, or go on with what was begun: then `finished` is known. What came of it, where it is complete.

        Raises ConfigurationError where the output was made from something else, or by somebody else.
        """
        with self._storage.explained():
            written = self._storage.read(self._plan)
            if written is None:
                self._require_new()
                self._storage.write(self._plan, _json({"plan": plan}))
                return None
            kept = _read(written, self._storage.named(self._plan))
            self._require_same(kept.get("plan", {}), json.loads(json.dumps(plan)))
            self._find()
            if "result" in kept:
                self._clean()
            result: dict[str, Any] | None = kept.get("result")
            return result

    def write(self, part: Finished) -> None:
        """Keep a finished part."""
        with self._storage.explained():
            if part.bad:
                self._storage.write(self._name(part.place, BAD), part.bad)
                self._bad.add(part.place)
            self._storage.write(self._name(part.place, self._suffix), part.content)

    def bad_rows(self, place: Place) -> int:
        """The number of bad rows of a part that was finished before."""
        if place not in self._bad:
            return 0
        with self._storage.explained():
            return (self._storage.read(self._name(place, BAD)) or b"").count(b"\n")

    def end(self, places: list[Place], result: Mapping[str, Any]) -> None:
        """All parts are finished: put the output together, and write what came of it."""
        with self._storage.explained():
            if not self._is_sharded:
                self._join(sorted(places))
            if self._bad:
                with self._storage.writing(self._all_bad) as file:
                    for place in sorted(self._bad):
                        file.write(self._storage.read(self._name(place, BAD)) or b"")
            kept = _read(self._storage.read(self._plan) or b"{}", self._storage.named(self._plan))
            self._storage.write(self._plan, _json({**kept, "result": result}))
            self._clean()

    def _join(self, places: list[Place]) -> None:
        contents = (self._storage.read(self._name(place, self._suffix)) or b"" for place in places)
        with self._storage.writing(self._output) as file:
            if self._suffix == ".parquet":
                join_parquet(file, contents)
            else:
                file.writelines(contents)

    def _name(self, place: Place, suffix: str) -> str:
        before, after = self._names
        return f"{self._folder}/{before}{place[0]:05}-{place[1]:05}{after}{suffix}"

    def _find(self) -> None:
        before, after = map(re.escape, self._names)
        own = re.compile(rf"{before}{_PART}{after}({re.escape(self._suffix)}|{re.escape(BAD)})")
        found: dict[str, set[Place]] = {self._suffix: set(), BAD: set()}
        for name in self._storage.names(self._folder):
            if match := own.fullmatch(name):
                found[match[3]].add((int(match[1]), int(match[2])))
        self.finished, self._bad = frozenset(found[self._suffix]), found[BAD] & found[self._suffix]

    def _require_new(self) -> None:
        """Raise ConfigurationError where files are there that no plan explains."""
        self._find()
        there = self._shown if not self._is_sharded and self._storage.exists(self._output) else None
        if self.finished:
            there = self._storage.named(self._name(min(self.finished), self._suffix))
        if there is not None:
            raise ConfigurationError(f"--output: {there} exists already; remove it, or name another output")

    def _require_same(self, kept: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        for key in plan:
            if kept.get(key) != plan[key]:
                was, now = (_shortened(one.get(key)) for one in (kept, plan))
                raise ConfigurationError(
                    f"{self._shown} was begun with another {key} ({was}, now {now}); remove "
                    f"{self._storage.named(self._plan)} and its parts, or name another --output"
                )

    def _clean(self) -> None:
        if not self._is_sharded:
            self._storage.remove(self._folder)
        for place in self._bad if self._is_sharded else ():
            self._storage.remove(self._name(place, BAD))


def _read(content: bytes, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError:
        raise ConfigurationError(f"{name} is not a plan of sextet batch; remove it, or name another --output") from None
    return found


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
