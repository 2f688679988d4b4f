"""Cache: checkpoint folders that take a while to make and depend on nothing but their ingredients: made once."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """$SEXTET_CACHE, or ~/.cache/sextet."""
    return Path(os.environ.get("SEXTET_CACHE") or Path.home() / ".cache" / "sextet").expanduser()


def made_once(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; where it is not there yet, `build` fills an empty one that becomes it."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        built = Path(scratch) / name
        built.mkdir()
        build(built)
        try:
            built.rename(target)
        except OSError:
            if not target.is_dir():  # another process was first, with the same content
                raise
    return target
