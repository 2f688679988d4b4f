"""Which libraries a shared library needs, and why it does not load."""

import subprocess
from pathlib import Path

import onnxruntime
import pytest

from pipelines.runtime.nvidia.shared_library import load, needed, path_of
from tests.pipelines.runtime.native import library, needs_compiler, run

BINDINGS = next((Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so"))


def test_the_libraries_that_a_real_one_needs_are_those_that_the_loader_resolves() -> None:
    names = needed(BINDINGS)
    assert "libc.so.6" in names
    resolved = subprocess.run(["ldd", BINDINGS], capture_output=True, text=True, check=True).stdout
    assert {Path(name).name for name in names} <= {Path(line.split()[0]).name for line in resolved.splitlines()}


@needs_compiler
def test_needed_libraries_are_named_in_the_order_of_the_file(tmp_path: Path) -> None:
    first, second = library(tmp_path / "libfirst.so.7"), library(tmp_path / "libsecond.so.1")
    assert needed(library(tmp_path / "libboth.so", needs=(second, first)))[:2] == ("libsecond.so.1", "libfirst.so.7")
    assert "libfirst.so.7" not in needed(library(tmp_path / "libnone.so"))


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01", BINDINGS.read_bytes()[:200]])
def test_a_file_that_is_no_whole_library_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "libbad.so").write_bytes(content)
    with pytest.raises(OSError, match=r"libbad\.so is not a 64-bit shared library$"):
        needed(tmp_path / "libbad.so")
    with pytest.raises(FileNotFoundError):
        needed(tmp_path / "libabsent.so")


@needs_compiler
def test_a_library_is_loaded_from_a_folder_that_the_loader_does_not_know(tmp_path: Path) -> None:
    file = library(tmp_path / "there" / "libsextet_test_a.so.3")
    assert load(file.name) == f"{file.name}: cannot open shared object file: No such file or directory"
    assert load(file.name, [tmp_path, file.parent]) is None
    assert path_of(file.name) == file
    assert load(file.name) is None, "what is loaded is found by its soname"


@needs_compiler
def test_a_library_that_is_found_and_does_not_load_has_the_reason_of_the_loader(tmp_path: Path) -> None:
    lacking = library(tmp_path / "libsextet_test_gone.so.1")
    file = library(tmp_path / "libsextet_test_b.so", needs=(lacking,))
    lacking.unlink()
    assert load(file.name, [tmp_path]) == f"{lacking.name}: cannot open shared object file: No such file or directory"
    (tmp_path / "libsextet_test_c.so").write_bytes(b"garbage, and enough of it for a header")
    assert str(load("libsextet_test_c.so", [tmp_path])).endswith(("invalid ELF header", "file too short"))
    assert path_of("libsextet_test_c.so") is None


def test_nothing_is_loaded_by_looking() -> None:
    look = "from pathlib import Path\nfrom pipelines.runtime.nvidia.shared_library import needed, path_of\n"
    assert run(f"{look}needed(Path({str(BINDINGS)!r})); print(path_of({BINDINGS.name!r}))") == "None"
