"""Staging: an artifact appears under its name whole, or not at all.

An export writes into a staging folder beside the output; one rename puts it in place. The process holds a lock on its
staging folder, so that the next export finds and removes the folders of processes that were killed.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from pipelines.errors import ConfigurationError
from pipelines.runtime.artifact import MANIFEST_NAME, FileDigest, Manifest, ModelArtifact

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_output(output: Path) -> None:
    """Raises ConfigurationError where `output` holds a file that no export wrote."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigurationError(f"output {output} is a file; name a folder that does not exist yet, or an artifact")
    found = {path.name for path in output.iterdir()}
    if not found:
        return
    if MANIFEST_NAME not in found:
        raise ConfigurationError(
            f"output {output} holds files but no {MANIFEST_NAME}, so it is not ours to replace; name another folder"
        )
    try:
        ours = set(Manifest.from_json((output / MANIFEST_NAME).read_text(encoding="utf-8")).files) | {MANIFEST_NAME}
    except ValueError:
        return  # a manifest of another release, or a damaged one: still an artifact
    if foreign := sorted(found - ours):
        raise ConfigurationError(f"output {output} holds {foreign[0]}, which no export wrote; move it away first")


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` on the same filesystem, gone at the end unless `place` renamed it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(output)
    folder = Path(mkdtemp(prefix=_prefix(output), dir=output.parent))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def written_by(output: Path, file: Path) -> bool:
    """Whether an export to `output` writes `file`: its staging folder, the output itself, or a folder above it."""
    file, output = file.absolute(), output.absolute()
    inside = file.is_relative_to(output) or any(
        part.name.startswith(_prefix(output)) and part.parent == output.parent for part in (file, *file.parents)
    )
    return inside or output.is_relative_to(file)


def place(folder: Path, manifest: Manifest, output: Path) -> ModelArtifact:
    """Write the manifest into `folder`, sync everything to the disk, and put the folder in the place of `output`."""
    for path in folder.iterdir():
        path.chmod(0o644)
        _sync(path)
    files = {path.name: FileDigest.of(path) for path in sorted(folder.iterdir())}
    manifest = replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    folder.chmod(0o755)
    for path in (folder / MANIFEST_NAME, folder):
        _sync(path)
    check_output(output)
    if output.exists():
        _exchange(folder, output)
        shutil.rmtree(folder)  # the former output
    else:
        folder.rename(output)
    _sync(output.parent)
    return ModelArtifact(output, manifest)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders atomically where the filesystem can; else in steps, with `other` missing in between."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if hasattr(libc, "renameat2"):
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        if (number := ctypes.get_errno()) not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), str(other))
    aside = other.with_name(f"{_prefix(other)}replaced")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def _remove_stale(output: Path) -> None:
    for folder in output.parent.glob(f"{_prefix(output)}*"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # an export to the same output is running
        finally:
            os.close(lock)


def _prefix(output: Path) -> str:
    return f".{output.name}.export-"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
