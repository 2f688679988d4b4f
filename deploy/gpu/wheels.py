"""The folder of wheels that deploy/gpu/install.sh installs from: made with a network, joined without one.

    python deploy/gpu/wheels.py make WHEELS [MIB]  download what requirements/gpu-proof.lock pins, cut it, group it
    python deploy/gpu/wheels.py join WHEELS OUT    put the whole wheels into OUT, each verified

    WHEELS/manifest.json    every wheel: its sha256, and the files that it was cut into
    WHEELS/batch-01/...     at most MIB (60) each, for a connection that takes no more at once

The wheels are for Linux on x86-64. PyTorch and CUDA are not among them: install.sh borrows the machine's. `join` needs
nothing but Python.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PathDistribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "gpu-proof.lock"
PYTHON = "3.12"
PIECE_BYTES = 55_000_000
MOST_MIB = 1024
BORROWED = {"torch"}  # what the machine has, and no wheel provides
MANIFEST = "manifest.json"
# pip takes the tags that it is given and no older ones: every glibc from 2.39 (Ubuntu 24.04) down.
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), "manylinux2014_x86_64"]


class WheelsError(Exception):
    """One line: what is wrong with which file, and what to do."""


@dataclass(frozen=True)
class Wheel:
    """A wheel by its file name; `pieces` are files below the folder that give it when they are joined in order."""

    name: str
    sha256: str
    pieces: tuple[str, ...]


def make(folder: Path, batch_bytes: int) -> list[Wheel]:
    """Download, cut and group. A `folder` that was made before is replaced; raises WheelsError for any other."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise WheelsError(f"{folder} holds files and no {MANIFEST}; remove it, or name a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        _download(Path(scratch))
        wheels = sorted(Path(scratch).glob("*.whl"))
        if lacking := missing(wheels, _roots()):
            raise WheelsError(f"{LOCK.name} lacks {', '.join(lacking)}; run `make lock`")
        if folder.exists():
            shutil.rmtree(folder)
        return pack(wheels, folder, min(PIECE_BYTES, batch_bytes), batch_bytes)


def pack(wheels: Iterable[Path], folder: Path, piece_bytes: int, batch_bytes: int) -> list[Wheel]:
    """Cut `wheels` into pieces, group these into batches, and write the manifest. `folder` must not exist yet."""
    made, files = [], []
    loose = folder / "loose"
    loose.mkdir(parents=True)
    for wheel in wheels:
        pieces = _cut(wheel, loose, piece_bytes)
        files += pieces
        made.append((wheel, pieces))
    places = {}
    for number, batch in enumerate(group([(file, file.stat().st_size) for file in files], batch_bytes), start=1):
        place = folder / f"batch-{number:02}"
        place.mkdir()
        for file in batch:
            places[file] = file.rename(place / file.name).relative_to(folder).as_posix()
    loose.rmdir()
    packed = [Wheel(wheel.name, _sha256([wheel]), tuple(places[piece] for piece in pieces)) for wheel, pieces in made]
    content = {"python": PYTHON, "lock": _sha256([LOCK]), "wheels": [asdict(wheel) for wheel in packed]}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return packed


def group(files: Iterable[tuple[Path, int]], batch_bytes: int) -> list[list[Path]]:
    """Batches of at most `batch_bytes`, from files and their sizes: each file goes to the first batch with room."""
    batches: list[list[Path]] = []
    free: list[int] = []
    for file, size in sorted(files, key=lambda one: -one[1]):
        place = next((index for index, room in enumerate(free) if size <= room), len(batches))
        if place == len(batches):
            batches.append([])
            free.append(batch_bytes)
        batches[place].append(file)
        free[place] -= size
    return batches


def join(folder: Path, out: Path) -> list[Path]:
    """The whole wheels, in `out`. Raises WheelsError for a piece that is missing and for a wheel that was altered."""
    wheels = read_manifest(folder)
    if absent := [piece for wheel in wheels for piece in wheel.pieces if not (folder / piece).is_file()]:
        batches = sorted({piece.partition("/")[0] for piece in absent})
        raise WheelsError(f"{folder} lacks {len(absent)} files, {absent[0]} among them; bring {', '.join(batches)}")
    out.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        pieces = [folder / piece for piece in wheel.pieces]
        if (found := _sha256(pieces)) != wheel.sha256:
            raise WheelsError(
                f"{wheel.name} has sha256 {found}, expected {wheel.sha256}; bring {', '.join(wheel.pieces)} again"
            )
        with (out / wheel.name).open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, whole)
    return [out / wheel.name for wheel in wheels]


def read_manifest(folder: Path) -> list[Wheel]:
    """The wheels of a folder; raises WheelsError where there is no manifest, and for another Python or another lock."""
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        wheels = [Wheel(one["name"], one["sha256"], tuple(one["pieces"])) for one in content["wheels"]]
        python, lock = content["python"], content["lock"]
    except OSError as error:
        raise WheelsError(f"{manifest}: {error.strerror}; `make wheels` writes it") from None
    except (ValueError, KeyError, TypeError):
        raise WheelsError(f"{manifest} is no manifest of wheels; `make wheels` writes it") from None
    for path in (path for wheel in wheels for path in (wheel.name, *wheel.pieces)):
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise WheelsError(f"{manifest} names {path}; allowed: files below its folder")
    if (here := f"{sys.version_info.major}.{sys.version_info.minor}") != python:
        raise WheelsError(f"the wheels are for Python {python}, this is {here}; name another: PYTHON=python{python}")
    if lock != _sha256([LOCK]):
        raise WheelsError(f"{manifest} was made from another {LOCK.name}; run `make wheels` again")
    return wheels


def missing(wheels: Iterable[Path], roots: Iterable[str]) -> list[str]:
    """What `roots`, and the wheels themselves, need on the machine without a network, and no wheel provides."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    provided = {}
    for wheel in wheels:
        metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if re.fullmatch(r"[^/]+/METADATA", name))
        distribution = PathDistribution(zipfile.Path(wheel, metadata.removesuffix("METADATA")))
        provided[canonicalize_name(distribution.metadata["Name"])] = distribution
    lacking, seen = [], set[tuple[str, str]]()
    waiting = [Requirement(root) for root in roots] + [Requirement(name) for name in provided]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in BORROWED:
            continue
        found = provided.get(name)
        if found is None or not requirement.specifier.contains(found.version, prereleases=True):
            lacking.append(f"{requirement.name}{requirement.specifier}")
            continue
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needs = [Requirement(line) for line in found.requires or ()]
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate(_target(extra))]
    return sorted(set(lacking))


def _target(extra: str) -> dict[str, str]:
    """The variables of PEP 508 on the machine without a network."""
    return {
        "extra": extra,
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def _roots() -> list[str]:
    """What sextet[serve] and gpu-proof.in ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = LOCK.with_suffix(".in").read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line and not line.startswith("#")]
    return [*project["dependencies"], *project["optional-dependencies"]["serve"], *asked]


def _download(folder: Path) -> None:
    """The wheels that LOCK pins, by pip, which compares the hashes; raises WheelsError."""
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "-r", str(LOCK)]
    finished = subprocess.run([*command, *target, "--dest", str(folder)], check=False)
    if finished.returncode:
        raise WheelsError("pip could not download the wheels; its own message is above")


def _cut(wheel: Path, folder: Path, piece_bytes: int) -> list[Path]:
    """The files in `folder` that the wheel was copied into: one, or several of at most `piece_bytes`."""
    n_pieces = -(-wheel.stat().st_size // piece_bytes)
    if n_pieces <= 1:
        return [Path(shutil.copy(wheel, folder))]
    pieces = []
    with wheel.open("rb") as whole:
        for number in range(1, n_pieces + 1):
            pieces.append(folder / f"{wheel.name}.{number}-of-{n_pieces}")
            pieces[-1].write_bytes(whole.read(piece_bytes))
    return pieces


def _sha256(files: Iterable[Path]) -> str:
    """The digest of the files, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> None:
    match list(arguments):
        case ["make", folder, *bound] if len(bound) < 2:
            wheels = make(Path(folder), _mib(*bound))
            for batch in sorted(Path(folder).glob("batch-*")):
                sizes = [file.stat().st_size for file in batch.iterdir()]
                print(f"{batch}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB")
            print(f"{len(wheels)} wheels; {Path(folder, MANIFEST)} goes with them")
        case ["join", folder, out]:
            joined = join(Path(folder), Path(out))
            size = sum(wheel.stat().st_size for wheel in joined)
            print(f"{len(joined)} wheels joined and verified, {size / 2**20:.0f} MiB")
        case _:
            raise WheelsError("allowed: make WHEELS [MIB], or join WHEELS OUT")


def _mib(text: str = "60") -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_MIB:
        raise WheelsError(f"MIB is {text!r}; allowed: 1 to {MOST_MIB}")
    return int(text) * 2**20


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (WheelsError, OSError) as error:
        sys.exit(f"wheels: {error}")
