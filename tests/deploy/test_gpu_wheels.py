"""deploy/gpu/wheels.py with small wheels made here: cut and joined byte by byte, grouped within a bound, complete."""

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.gpu import wheels
from deploy.gpu.wheels import WheelsError

PIECE, BATCH = 1_000, 1_500


def wheel(folder: Path, name: str, *needs: str, size: int = 100, version: str = "1.0") -> Path:
    """A wheel with `size` random bytes in it, and `needs` as its Requires-Dist."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    information = f"{name}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/data", random.Random(name).randbytes(size))
        archive.writestr(f"{information}/METADATA", "\n".join(["Metadata-Version: 2.1", *metadata, ""]))
    return file


@pytest.fixture(autouse=True)
def _for_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "PYTHON", f"{sys.version_info.major}.{sys.version_info.minor}")


@pytest.fixture
def made(tmp_path: Path) -> list[Path]:
    """Three wheels, of which one is larger than a batch."""
    sizes = {"small": 10, "middling": 500, "large": 4_000}
    return [wheel(tmp_path / "made", name, size=size) for name, size in sizes.items()]


@pytest.fixture
def packed(made: list[Path], tmp_path: Path) -> Path:
    wheels.pack(made, tmp_path / "wheels", PIECE, BATCH)
    return tmp_path / "wheels"


def test_wheels_are_joined_to_what_they_were(packed: Path, made: list[Path], tmp_path: Path) -> None:
    joined = wheels.join(packed, tmp_path / "joined")
    assert [file.read_bytes() for file in joined] == [file.read_bytes() for file in made]
    assert sorted(path.name for path in (tmp_path / "joined").iterdir()) == sorted(path.name for path in made)


def test_no_piece_and_no_batch_is_larger_than_its_bound(packed: Path) -> None:
    batches = [[file.stat().st_size for file in batch.iterdir()] for batch in packed.glob("batch-*")]
    assert max(size for batch in batches for size in batch) <= PIECE
    assert max(map(sum, batches)) <= BATCH
    assert sorted(path.name for path in packed.iterdir() if path.is_file()) == ["manifest.json"]


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(100, 250))
def test_every_file_is_in_one_batch_with_room_for_it(sizes: list[int], bound: int) -> None:
    files = {Path(str(index)): size for index, size in enumerate(sizes)}
    batches = wheels.group(files.items(), bound)
    assert sorted(file for batch in batches for file in batch) == sorted(files)
    assert all(batch and sum(files[file] for file in batch) <= bound for batch in batches)
    # Two batches that would fit into one were not left apart.
    assert all(sum(files[file] for file in batch) > bound / 2 for batch in batches[:-1])


def test_a_piece_that_was_altered_is_named(packed: Path, tmp_path: Path) -> None:
    (piece,) = packed.glob("batch-*/large-*.2-of-*")
    piece.write_bytes(bytes(reversed(piece.read_bytes())))
    with pytest.raises(WheelsError, match=rf"^large-1\.0-py3-none-any\.whl has sha256 \w+, expected .*{piece.name}"):
        wheels.join(packed, tmp_path / "joined")


def test_batches_that_were_not_brought_are_named(packed: Path, tmp_path: Path) -> None:
    (piece,) = packed.glob("batch-*/large-*.1-of-*")
    batch = piece.parent
    piece.unlink()
    with pytest.raises(WheelsError, match=rf"lacks 1 files, {batch.name}/{piece.name} among them; bring {batch.name}$"):
        wheels.join(packed, tmp_path / "joined")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"python": "3.9"}, r"^the wheels are for Python 3\.9, this is 3\.\d+; name another: PYTHON=python3\.9$"),
        ({"lock": "0"}, r"was made from another gpu-proof\.lock; run `make wheels` again$"),
        ({"wheels": [{"name": "../x", "sha256": "", "pieces": []}]}, r"names \.\./x; allowed: files below its folder$"),
        ({"wheels": [{"name": "x", "sha256": "", "pieces": ["/x"]}]}, r"names /x; allowed: files below its folder$"),
        ({"wheels": 3}, r"is no manifest of wheels; `make wheels` writes it$"),
    ],
)
def test_a_folder_for_something_else_is_refused(packed: Path, tmp_path: Path, change: object, line: str) -> None:
    manifest = packed / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(WheelsError, match=line):
        wheels.join(packed, tmp_path / "joined")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").touch()

    with pytest.raises(WheelsError, match=r"holds files and no manifest\.json; remove it, or name a new folder$"):
        wheels.make(tmp_path / "letters", BATCH)

    assert (tmp_path / "letters" / "one.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["join", ".", "joined"], "manifest.json: No such file or directory; `make wheels` writes it"),
        (["make", "wheels", "0"], "MIB is '0'; allowed: 1 to 1024"),
        (["make", "wheels", "-1"], "MIB is '-1'; allowed: 1 to 1024"),
        (["make", "wheels", "60", "MiB"], "allowed: make WHEELS [MIB], or join WHEELS OUT"),
        ([], "allowed: make WHEELS [MIB], or join WHEELS OUT"),
    ],
)
def test_the_command_fails_in_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    command = [sys.executable, wheels.__file__, *arguments]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (1, "", f"wheels: {line}\n")
    assert [*tmp_path.iterdir()] == []


def test_make_passes_the_size_of_a_batch_on() -> None:
    root = Path(wheels.__file__).parents[2]
    command = ["make", "--no-print-directory", "-n", "wheels", "MIB=26"]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1].endswith("deploy/gpu/wheels.py make deploy/gpu/wheels 26")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "install.sh: allowed: install.sh WHEELS VENV"),
        (["absent", "made"], 1, "wheels: absent/manifest.json: No such file or directory; `make wheels` writes it"),
    ],
)
def test_an_installation_that_cannot_be_is_one_line_and_makes_nothing(
    tmp_path: Path, arguments: list[str], code: int, line: str
) -> None:
    script = Path(wheels.__file__).with_name("install.sh")
    environment = {**os.environ, "PYTHON": sys.executable}
    said = subprocess.run(
        [str(script), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout, said.stderr) == (code, "", f"{line}\n")
    assert [*tmp_path.iterdir()] == []


def test_an_environment_with_the_runtime_for_cpus_is_left_as_it_is(tmp_path: Path) -> None:
    site_packages = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    script = Path(wheels.__file__).with_name("install.sh")
    for package, line in (
        ("onnxruntime_gpu", "wheels: absent/manifest.json: No such file or directory; `make wheels` writes it"),
        ("onnxruntime", "install.sh: venv has onnxruntime for CPUs, whose folder onnxruntime-gpu shares; name another"),
    ):
        (site_packages / f"{package}-1.31.1.dist-info").mkdir(parents=True)
        environment = {**os.environ, "PYTHON": sys.executable}
        command = [str(script), "absent", "venv"]
        said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (said.returncode, said.stdout) == (1, "")
        (reason,) = said.stderr.splitlines()
        assert reason.startswith(line)


@pytest.mark.parametrize(
    ("needs", "lacking"),
    [
        ((), []),
        (("torch>=2", "other"), []),
        (("absent",), ["absent"]),
        (("other>=2",), ["other>=2"]),
        (("absent; extra == 'more'",), []),
        (("other[more]",), ["absent>=3"]),
        (("absent; sys_platform == 'win32'",), []),
        (("absent; python_version < '3.0'",), []),
        (("absent<4; sys_platform == 'linux'",), ["absent<4"]),
    ],
)
def test_what_the_wheels_need_and_none_provides_is_found(
    tmp_path: Path, needs: tuple[str, ...], lacking: list[str]
) -> None:
    files = [wheel(tmp_path, "one", *needs), wheel(tmp_path, "other", "absent>=3; extra == 'more'")]
    assert wheels.missing(files, ["one"]) == lacking
    assert wheels.missing(files, ["two"]) == sorted([*lacking, "two"])
