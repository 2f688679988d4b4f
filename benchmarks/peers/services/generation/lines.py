"""The protocol of a program that generates text: a line of JSON in, a line out (see benchmarks/peers/writers.py)."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKPOINT = Path(os.environ["PEER_CHECKPOINT"])
TOKENIZER = Path(os.environ["PEER_TOKENIZER"])
MODEL = Path(os.environ["PEER_MODEL"])
THREADS = int(os.environ["PEER_THREADS"])
DEVICE = os.environ["PEER_DEVICE"]


def made(make: Callable[[Path], None]) -> Path:
    """The folder MODEL; `make` fills it once."""
    if not MODEL.exists():
        unfinished = MODEL.with_name(f".{MODEL.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(MODEL)
    return MODEL


def serve(write: Callable[[list[list[int]], int, int, bool], list[list[int]]]) -> None:
    """Answer until standard input ends; `write` takes prompts, new tokens, beams, and whether exactly as many."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not into the answers
    _say(answers, "ready")
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        tokens = write(asked["prompts"], asked["new_tokens"], asked["beams"], asked["exact"])
        _say(answers, {"tokens": tokens, "seconds": time.perf_counter() - began})


def _say(answers: Any, what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()
