"""Shared libraries of Linux: which others one needs, and why it would not load."""

import ctypes
import mmap
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"  # x86-64 and AArch64
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed(library: Path) -> tuple[str, ...]:
    """The sonames that a library names as DT_NEEDED, in its order. Raises OSError for a file that is no library.

    This reads the file and runs no code. An execution provider that is loaded before onnxruntime loads it dereferences
    a null pointer in its static initializers, so asking the dynamic loader is no way to find out.
    """
    with library.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return tuple(_needed(content))
        except (ValueError, struct.error):  # empty, or cut off
            raise OSError(f"{library} is not a 64-bit shared library") from None


def load(soname: str, folders: Iterable[Path] = ()) -> str | None:
    """Load a library from where the dynamic loader finds it, else from the first of `folders` that has it.

    Returns None, or the loader's reason in one line. A library that is loaded satisfies the DT_NEEDED of those that are
    loaded later, wherever it came from.
    """
    try:
        ctypes.CDLL(soname)
        return None
    except OSError as error:
        reason = str(error)
    for path in (folder / soname for folder in folders):
        if path.is_file():
            try:
                ctypes.CDLL(str(path))
                return None
            except OSError as error:
                return str(error)
    return reason


def path_of(soname: str) -> Path | None:
    """The file of a library that this process has loaded."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            name = line.partition("/")[2]
            if name.rpartition("/")[2] == soname:
                return Path(f"/{name}")
    return None


def _needed(content: mmap.mmap) -> Iterator[str]:
    if content[:6] != _ELF64_LITTLE_ENDIAN:
        raise ValueError
    (table,) = struct.unpack_from("<Q", content, 0x20)
    size, count = struct.unpack_from("<HH", content, 0x36)
    # Of each program header: type, offset in the file, address in memory, size in the file.
    headers = [struct.unpack_from("<I4xQQ8xQ", content, table + index * size) for index in range(count)]
    loaded = [(address, offset, length) for kind, offset, address, length in headers if kind == _PT_LOAD]
    entries = []
    for kind, offset, _, length in headers:
        if kind == _PT_DYNAMIC:
            entries += [struct.unpack_from("<qQ", content, offset + at) for at in range(0, length, 16)]
    entries = entries[: next((i for i, (tag, _) in enumerate(entries) if tag == _DT_NULL), len(entries))]
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    start = next((offset + strings - address for address, offset, n in loaded if 0 <= strings - address < n), None)
    for tag, value in entries:
        if tag == _DT_NEEDED and start is not None:
            end = content.find(b"\0", start + value)
            yield content[start + value : end].decode()
