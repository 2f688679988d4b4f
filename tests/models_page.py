"""Write docs/models.md: what each known checkpoint's architecture becomes, measured on tiny weights.

python -m tests.models_page             measures every checkpoint: minutes
python -m tests.models_page NAME ...    those that are named; "" none; the others keep what the page says
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from checkpoints.generations import OPTIMUM, TRANSFORMERS5
from export.build import ExportArgs, export_checkpoint
from pipelines.errors import SextetError, first_line
from pipelines.runtime.artifact import Parity
from tests import model_speeds, transformers5
from tests.known_models import DECODERS, ENCODER_DECODERS, ENCODERS, KnownModel

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_HEAD = """# Models

What `sextet export` makes of checkpoints that people run. `python -m tests.models_page` writes this page: each row was
exported in every precision, from tiny random weights under the config and the kind of tokenizer that the checkpoint
has, and compared with PyTorch. Each row is a test, which downloads such a checkpoint by its name from a Hub on loopback
(tests/export/test_known_models.py).

*slots*: requests are decoded together, each in its own KV cache slot. *plain*: one request after the other, on
Optimum's graph; the export says why. The difference is the largest one of a logit, on unit scale, in fp32 and in int8;
random weights round worse than trained ones. An architecture that is not in the tables goes the same way: what a model
does decides, not its name.

Size and speed are those of the real shape in int8 with random weights, where it was measured (`python -m
tests.model_speeds`): weights and artifact; on two cores ({machine}) rows of 128 tokens a second, in batches of 8, or
new tokens a second of one stream and of 16, after 32 tokens each. Above a billion weights, PyTorch's model and the
graph do not fit beside each other into the memory of that machine. Served models are in
[performance.md](performance.md).
"""
_KINDS = {
    "Encoders": (ENCODERS, "Base checkpoints have no trained head: fine-tune them first (docs/finetuning.md)."),
    "Encoder-decoders": (ENCODER_DECODERS, "Slots are for CPUs, in fp32 and int8."),
    "Decoder-only models": (DECODERS, "In slots on CPUs and, with fp16 or int4, on CUDA."),
}
_NEWER = """
## Newer architectures

New models appear in transformers 5, and Optimum's exporter takes transformers 4. One environment holds one of them, so
the exporter `transformers5` runs in an environment of its own, and its artifacts are served as all others are: nothing
that serves has transformers at all.

    make transformers5                                        of a source tree: inside its environment, 80 MB
    sextet export LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct --task text-generation --output models/exaone \\
        --exporter transformers5

In cluster.yaml it is `source: {checkpoint: ..., exporter: transformers5}`, beside others of the default. Where Sextet
is installed as a package, make an environment with `pip install 'sextet[transformers5,cpu]'`, and let
SEXTET_TRANSFORMERS5 name its Python. The same release of Sextet belongs in both.

| | `optimum`, the default | `transformers5` |
|---|---|---|
| transformers | 4.57.6 | 5.24.0 |
| architectures | those of transformers 4 | those of transformers 5, which has newer ones and dropped a few |
| encoders | by Optimum's exporter, attention fused where it can be | traced, attention fused likewise |
| generators in slots | by rule | by the same rule |
| generators without slots | one request after the other | refused |
| `--optimize`, and the default levels of encoders | yes | no: ONNX Runtime fuses when it loads a graph |
| fine-tuning, evaluation of a checkpoint | yes | no; artifacts are evaluated as all are |

Base checkpoints have no trained head. Each row is a test (tests/export/test_transformers5.py): what the artifact
answers is held against the answers of transformers 5, 200 tokens of each generator.

"""
_NEWER_TITLES = (
    "| checkpoint | architecture | task | decoding | precisions | fp32 | int8 |\n|---|---|---|---|---|---:|---:|\n"
)
_MEASURED = 4  # cells: decoding, precisions, differences
_TITLES = (
    "| checkpoint | architecture | task | decoding | precisions | fp32 | int8 | size | speed |\n"
    "|---|---|---|---|---|---:|---:|---:|---:|\n"
)
_TAIL = """
## Texts beyond a first length

Phi-3 of 128k and Phi-4 rotate positions in one way up to their first length (`original_max_position_embeddings`, 4,096
tokens), and in another way beyond it (longrope). transformers begins anew with the whole text where an answer grows
beyond it. A graph holds the first way, so prompt and answer together are refused beyond that length.

## Checkpoints with code of their own

`auto_map` in a config asks transformers to run Python that came with the weights. It is never run here. Where
transformers has the architecture itself, its own code is taken, and the export says so: Phi-3, and EXAONE 3 and 3.5
with the exporter `transformers5`. Others are refused in one line, such as `monologg/kobert` with its own tokenizer.
`skt/kobert-base-v1` names XLNet's tokenizer, which transformers reads: the pieces are KoBERT's, the special tokens
stand where XLNet puts them. Its own package frames texts as BERT does; `sextet evaluate` on your rows shows whether
that matters for a fine-tuned one.
"""


def page(names: Collection[str]) -> str:
    """The page; the named checkpoints, or all of them without names, are measured now."""
    torch.set_num_threads(1)  # of tiny models
    parts = [_HEAD.replace("{machine}", model_speeds.machine())]
    for title, (models, note) in _KINDS.items():
        rows = "".join(_rows(models, names))
        parts.append(f"\n## {title}\n\n{note}\n\n{_TITLES}{rows}")
    parts.append(f"{_NEWER}{_NEWER_TITLES}{''.join(_rows(transformers5.KNOWN_MODELS, names))}")
    return "".join([*parts, _TAIL])


def _rows(models: Iterable[KnownModel], names: Collection[str]) -> Iterator[str]:
    kept = _kept() if names else {}
    for known in models:
        if known.name in names or known.name not in kept:
            with TemporaryDirectory() as folder:
                kept[known.name] = _measured(known, Path(folder))
            print(known.name, file=sys.stderr)
        cells = [f"`{known.name}`", known.architecture, known.task, kept[known.name]]
        if known not in transformers5.KNOWN_MODELS:
            cells += model_speeds.cells(known)
        yield f"| {' | '.join(cells)} |\n"


def _kept() -> dict[str, str]:
    """The cells of `_measured` on the page, by checkpoint."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): " | ".join(row[3 : 3 + _MEASURED]) for row in rows}


def _measured(known: KnownModel, folder: Path) -> str:
    """The cells behind the task: decoding, precisions, differences."""
    checkpoint, decoding, exporter = folder / "checkpoint", "—", OPTIMUM
    if known in transformers5.KNOWN_MODELS:
        exporter = TRANSFORMERS5
        transformers5.answered([transformers5.Request.of(known, checkpoint)])
    else:
        known.write(checkpoint)
    found: dict[str, Parity] = {}
    for precision in ("fp32", "int8", "int4"):
        args = ExportArgs(str(checkpoint), known.task, folder / precision, precision=precision, exporter=exporter)
        try:
            manifest = export_checkpoint(args).manifest
        except SextetError as error:
            if precision == "fp32":
                why = first_line(error).replace(str(checkpoint), "").strip(" :")
                return f"refused: {why} | | | "
            continue
        found[precision] = manifest.parity
        decoding = manifest.cache if known.generates else decoding
    differences = [f"{found[one].largest_difference:.1g}" if one in found else "" for one in ("fp32", "int8")]
    return " | ".join([decoding, ", ".join(found), *differences])


if __name__ == "__main__":
    PAGE.write_text(page(sys.argv[1:]), encoding="utf-8")
