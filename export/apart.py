"""Apart: an export by an exporter that needs another environment than this one, in a process of that environment.

One environment holds transformers 4 and Optimum, or transformers 5. SEXTET_TRANSFORMERS5 names the Python of the
latter; without it, it is the one that `make transformers5` installs inside this environment. The process runs
export/child.py:

    stdin   one JSON document: the exports, and whether finished ones are kept
    stdout  a line of JSON for each event: {"said": text}, {"wrote": folder}, {"failed": kind of error, "why": text}
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.frameworks import Progress
from checkpoints.generations import OPTIMUM
from export.args import ExportArgs
from pipelines import errors
from pipelines.errors import CheckpointError, ConfigurationError, SextetError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.package import SOURCE_TREE, install_command

PYTHON = "SEXTET_TRANSFORMERS5"
_LAST_LINES = 300  # characters of what a process says that ends by itself


def export_apart(
    exports: Sequence[ExportArgs], progress: Progress, *, keep: bool, exporter: str
) -> list[ModelArtifact]:
    """The artifacts, made by `exporter`; with `keep`, those that are there already and current stay.

    Raises ConfigurationError where its environment is not installed, and whatever an export raises here.
    """
    request = json.dumps({"keep": keep, "exporter": exporter, "exports": [_plain(args) for args in exports]})
    python, debug = _python(exporter), bool(os.environ.get("SEXTET_DEBUG"))
    folders: list[Path] = []
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [str(python), "-m", "export.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else complaints,
            text=True,
            env=_environment(),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # of a process that has ended: its code says so
                process.stdin.write(request)
                process.stdin.close()
            for line in process.stdout:
                event = _event(line, python)
                if "said" in event:
                    progress(event["said"])
                elif "wrote" in event:
                    folders.append(Path(event["wrote"]))
                else:
                    raise _error(event["failed"], event["why"])
        except BaseException:
            process.kill()
            raise
        if (code := process.wait()) != 0 or len(folders) != len(exports):
            complaints.seek(0)
            last = " ".join(complaints.read().split())[-_LAST_LINES:]
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            raise CheckpointError(f"the process of exporter {exporter} {ended}: {last or 'it said nothing'}")
    return [ModelArtifact.open(folder, task=args.task) for folder, args in zip(folders, exports, strict=True)]


def _event(line: str, python: Path) -> dict[str, str]:
    try:
        event: dict[str, str] = json.loads(line)
    except ValueError:
        said = line.strip()[:_LAST_LINES]
        raise ConfigurationError(f"{python} says {said!r}; {PYTHON} must name the Python of an environment") from None
    return event


def _plain(args: ExportArgs) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(args).items()}


def _error(kind: str, why: str) -> SextetError:
    found: type[SextetError] = getattr(errors, kind, CheckpointError)
    return found(why)


def _environment() -> dict[str, str]:
    """This process's, without what would lead the other Python to modules of this one."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _python(exporter: str) -> Path:
    """The Python of an exporter's environment."""
    if exporter == OPTIMUM:
        raise ConfigurationError(
            f"exporter {OPTIMUM} needs transformers 4 and Optimum, and this environment has transformers 5: "
            f"{install_command('export,cpu')} in another one, or --exporter transformers5"
        )
    given = os.environ.get(PYTHON)
    python = Path(given).expanduser() if given else Path(sys.prefix) / exporter / "bin" / "python"
    if python.is_file():
        return python
    if given:
        raise ConfigurationError(f"{PYTHON} is {given!r}, and there is no such file; name the Python of an environment")
    make = "make transformers5, or " if (SOURCE_TREE / "Makefile").is_file() else ""
    raise ConfigurationError(
        f"exporter {exporter} needs transformers 5, in an environment of its own: {make}"
        f"{install_command(f'{exporter},cpu')} in a new one, whose Python {PYTHON} then names"
    )
