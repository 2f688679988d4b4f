"""Child: the process that exports in another environment; export/apart.py says what it reads and writes."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError, SextetError


def main() -> None:
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no event

    def tell(**event: str) -> None:
        events.write(json.dumps(event) + "\n")

    request = json.load(sys.stdin)
    try:
        _export(request, tell)
    except SextetError as error:
        if os.environ.get("SEXTET_DEBUG"):
            traceback.print_exc()
        tell(failed=type(error).__name__, why=str(error))


def _export(request: dict[str, Any], tell: Any) -> None:
    from checkpoints.generations import exporter_here

    if exporter_here() != request["exporter"]:
        raise ConfigurationError(
            f"exporter {request['exporter']} needs transformers 5, and {sys.executable} has transformers 4"
        )
    from export.build import ExportArgs, export_all, export_checkpoint

    exports = [ExportArgs(**one | {"output": Path(one["output"])}) for one in request["exports"]]

    def say(line: str) -> None:
        tell(said=line)

    made = export_all(exports, say) if request["keep"] else [export_checkpoint(one, say) for one in exports]
    for artifact in made:
        tell(wrote=str(artifact.path))


if __name__ == "__main__":
    main()
