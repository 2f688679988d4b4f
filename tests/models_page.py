"""Write docs/models.md: what each known checkpoint's architecture becomes, measured on tiny weights.

python -m tests.models_page
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from export.build import ExportArgs, export_checkpoint
from pipelines.errors import SextetError, first_line
from pipelines.runtime.artifact import Parity
from tests.known_models import DECODERS, ENCODER_DECODERS, ENCODERS, KnownModel

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_HEAD = """# Models

What `sextet export` makes of checkpoints that people run. `python -m tests.models_page` writes this page: each row was
exported in every precision, from tiny random weights under the config and the kind of tokenizer that the checkpoint
has, and compared with PyTorch. Each row is a test, which downloads such a checkpoint by its name from a Hub on loopback
(tests/export/test_known_models.py). Speeds of real sizes are in [performance.md](performance.md).

*slots*: requests are decoded together, each in its own KV cache slot. *plain*: one request after the other, on
Optimum's graph; the export says why. The difference is the largest one of a logit, on unit scale, in fp32 and in int8;
random weights round worse than trained ones. An architecture that is not in the tables goes the same way: what a model
does decides, not its name.
"""
_KINDS = {
    "Encoders": (ENCODERS, "Base checkpoints have no trained head: fine-tune them first (docs/finetuning.md)."),
    "Encoder-decoders": (ENCODER_DECODERS, "Slots are for CPUs, in fp32 and int8."),
    "Decoder-only models": (DECODERS, "In slots on CPUs and, with fp16 or int4, on CUDA."),
}
_TITLES = (
    "| checkpoint | architecture | task | decoding | precisions | fp32 | int8 |\n|---|---|---|---|---|---:|---:|\n"
)
_TAIL = """
## Checkpoints with code of their own

`auto_map` in a config asks transformers to run Python that came with the weights. It is never run here; such a
checkpoint is refused in one line: EXAONE 3 and 3.5 (EXAONE 4 is in transformers), `monologg/kobert` with its own
tokenizer. `skt/kobert-base-v1` names XLNet's tokenizer, which transformers reads: the pieces are KoBERT's, the special
tokens stand where XLNet puts them. Its own package frames texts as BERT does; `sextet evaluate` on your rows shows
whether that matters for a fine-tuned one.
"""


def page() -> str:
    """The page, measured now."""
    torch.set_num_threads(1)  # of tiny models
    parts = [_HEAD]
    for title, (models, note) in _KINDS.items():
        rows = "".join(_rows(models))
        parts.append(f"\n## {title}\n\n{note}\n\n{_TITLES}{rows}")
    return "".join([*parts, _TAIL])


def _rows(models: Iterable[KnownModel]) -> Iterator[str]:
    for known in models:
        with TemporaryDirectory() as folder:
            yield f"| `{known.name}` | {known.architecture} | {known.task} | {_measured(known, Path(folder))} |\n"
        print(known.name, file=sys.stderr)


def _measured(known: KnownModel, folder: Path) -> str:
    """The cells behind the task: decoding, precisions, differences."""
    checkpoint, decoding = known.write(folder / "checkpoint"), "—"
    found: dict[str, Parity] = {}
    for precision in ("fp32", "int8", "int4"):
        args = ExportArgs(str(checkpoint), known.task, folder / precision, precision=precision)
        try:
            manifest = export_checkpoint(args).manifest
        except SextetError as error:
            if precision == "fp32":
                why = first_line(error).replace(str(checkpoint), "").strip(" :")
                return f"refused: {why} | | | "
            continue
        found[precision] = manifest.parity
        decoding = decoding if known in ENCODERS else manifest.cache
    differences = [f"{found[one].largest_difference:.1g}" if one in found else "" for one in ("fp32", "int8")]
    return " | ".join([decoding, ", ".join(found), *differences])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
