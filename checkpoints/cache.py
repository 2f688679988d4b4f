"""Cache: checkpoint folders that take a while to make and depend on their ingredients alone are made once."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints.frameworks import full_disk
from pipelines.errors import ConfigurationError
from stores.filesystem import cache_folder

_ABANDONED_S = 24 * 3600.0  # a killed process leaves its half folder; no build takes this long


def made_once(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; where it is missing, `build` fills an empty folder that becomes it.

    Raises ConfigurationError where the cache cannot be written, or is full.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    with _scratch(target) as scratch:
        built = scratch / name
        built.mkdir()
        try:
            build(built)
        except Exception as error:
            if (cause := full_disk(error)) is None:
                raise
            raise _unwritable(cause) from error
        try:
            built.rename(target)
        except OSError:
            if not target.is_dir():  # another process was first, with the same content
                raise
    return target


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`; removes those that killed processes left."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        made = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
    except OSError as error:
        raise _unwritable(error) from None
    with made as scratch:
        yield Path(scratch)


def _unwritable(error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{cache_folder()} cannot be written: {error.strerror or error}; free some, or name another folder with "
        "SEXTET_CACHE"
    )
