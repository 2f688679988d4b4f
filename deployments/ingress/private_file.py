"""Files that only their owner can read. The standard library alone (node.py)."""

import os
from pathlib import Path


def write_private(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: somebody may be reading it."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(content)
    beside.replace(file)
