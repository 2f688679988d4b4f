"""Shapes: models of well-known sizes with random weights. A forward's cost depends on the shape, not on the weights.

The checkpoint is made from a config and exported by `sextet export`. Checkpoint and artifact stay under models/bench.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Say
from benchmarks.figures.result import ROOT
from benchmarks.load.texts import WORDS
from benchmarks.peers.peer import SERVICES
from benchmarks.suites.cluster import CLASSIFY
from pipelines.errors import ArtifactError, SextetError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.tokenizer import Tokenizer

FOLDER = ROOT / "models" / "bench"
VOCABULARY = 30_522  # of bert-base-uncased, for embeddings of the same size
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 512
CALIBRATION_ROWS = 128
HEAD_SCALE = 25.0  # makes the logits of random weights differ enough to be compared with PyTorch


class ShapeError(SextetError):
    """An export failed; its own message is on stderr."""


@dataclass(frozen=True)
class Shape:
    """A BERT encoder's size."""

    name: str
    layers: int
    hidden: int
    heads: int
    intermediate: int

    @property
    def checkpoint(self) -> Path:
        return FOLDER / "checkpoints" / self.name

    @property
    def artifact(self) -> Path:
        return FOLDER / self.name

    @property
    def plain(self) -> Path:
        return FOLDER / "plain" / self.name

    @property
    def optimum(self) -> Path:
        return FOLDER / "optimum" / self.name

    @property
    def openvino(self) -> Path:
        return FOLDER / "openvino" / self.name


BERT_BASE = Shape("bert-base", layers=12, hidden=768, heads=12, intermediate=3072)
DISTILBERT = Shape("distilbert", layers=6, hidden=768, heads=12, intermediate=3072)
MINILM_L6 = Shape("minilm-l6", layers=6, hidden=384, heads=12, intermediate=1536)


def ensure(shape: Shape, say: Say) -> Path:
    """The int8 artifact of a shape for text-classification, made where it is missing; raises ShapeError."""
    ensure_checkpoint(shape)
    return ensure_export(str(shape.checkpoint), CLASSIFY.name, "int8", shape.artifact, say, "--allow-untrained-head")


def ensure_checkpoint(shape: Shape) -> Path:
    """The checkpoint of a shape, made where it is missing."""
    if not (shape.checkpoint / "config.json").exists():
        _write_checkpoint(shape)
    return shape.checkpoint


def ensure_export(checkpoint: str, task: str, precision: str, output: Path, say: Say, *options: str) -> Path:
    """The artifact of a checkpoint, made by `sextet export` where it cannot be served; raises ShapeError."""
    try:
        ModelArtifact.open(output, task=task)
    except ArtifactError:
        say(f"making {output.relative_to(ROOT)}")
        command = [sys.executable, "-m", "sextet", "export", checkpoint, "--task", task, "--precision", precision]
        finished = subprocess.run([*command, "--output", str(output), *options], cwd=ROOT, check=False)
        if finished.returncode:
            raise ShapeError(f"{checkpoint} was not exported; the export's own message is above") from None
    return output


def ensure_without_slots(checkpoint: str, task: str, precision: str, output: Path, say: Say) -> Path:
    """As `ensure_export`, on Optimum's graph although the model can have KV cache slots."""
    try:
        ModelArtifact.open(output, task=task)
    except ArtifactError:
        say(f"making {output.name}")
        _asked(
            "from pathlib import Path; from unittest.mock import patch; from export.build import *; "
            f"args = ExportArgs({checkpoint!r}, {task!r}, Path({str(output)!r}), precision={precision!r})\n"
            "with patch('export.conversion._obstacle', return_value='it is measured without slots'):\n"
            "    print(export_checkpoint(args).path)"
        )
    return output


def starter(name: str) -> Path:
    """The checkpoint of `starter:NAME`, made where it is missing."""
    return _asked(f"from checkpoints.starters.starter import materialize; print(materialize({name!r}))")


def packaged_gguf() -> Path:
    """SmolLM2's file in its package."""
    return _asked("from checkpoints.starters.smollm2 import packaged_file; print(packaged_file())")


def _asked(program: str) -> Path:
    """The path that a program prints which imports the exporter; benchmarks does not import it."""
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise ShapeError("a checkpoint could not be made; the exporter's own message is above")
    return Path(finished.stdout.split()[-1])


def ensure_plain(shape: Shape, say: Say) -> Path:
    """What Optimum exports of a shape's checkpoint for text-classification, in fp32, made where it is missing."""
    if not (shape.plain / "model.onnx").exists():
        say(f"making {shape.plain.relative_to(ROOT)}")
        from optimum.exporters.onnx import main_export

        unfinished = _unfinished(shape.plain)
        main_export(str(shape.checkpoint), unfinished, task=CLASSIFY.name, do_validation=False)
        unfinished.rename(shape.plain)
    return shape.plain


def ensure_optimum(shape: Shape, say: Say) -> Path:
    """What Optimum alone makes of it, made where it is missing: dynamic quantization per channel for VNNI."""
    if not (shape.optimum / "model.onnx").exists():
        plain = ensure_plain(shape, say)
        say(f"making {shape.optimum.relative_to(ROOT)}")
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        unfinished = _unfinished(shape.optimum)
        quantizer = ORTQuantizer.from_pretrained(plain, file_name="model.onnx")
        settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        quantizer.quantize(save_dir=unfinished, quantization_config=settings, file_suffix="")
        _complete(shape, unfinished).rename(shape.optimum)
    return shape.optimum


def ensure_openvino(shape: Shape, python: Path, texts: Sequence[str], say: Say) -> Path:
    """What OpenVINO alone makes of it with `python`, its environment's: NNCF's int8, calibrated on `texts`.

    Made where it is missing; raises ShapeError.
    """
    if not (shape.openvino / "model.xml").exists():
        plain = ensure_plain(shape, say)
        say(f"making {shape.openvino.relative_to(ROOT)}")
        unfinished = _unfinished(shape.openvino)
        tokenizer = Tokenizer(ModelArtifact.open(shape.artifact))
        rows = [one.ids for one in tokenizer.encode(list(texts)[:CALIBRATION_ROWS], max_length=MAX_TOKENS)]
        command = [str(python), str(SERVICES / "quantize_openvino.py"), str(plain / "model.onnx")]
        command.append(str(unfinished / "model.xml"))
        finished = subprocess.run(command, input=json.dumps(rows), text=True, stdout=sys.stderr, check=False)
        if finished.returncode:
            raise ShapeError(f"{shape.name} was not quantized by NNCF; its own message is above")
        _complete(shape, unfinished).rename(shape.openvino)
    return shape.openvino


def _unfinished(folder: Path) -> Path:
    """An empty folder beside one that is to be made whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def _complete(shape: Shape, folder: Path) -> Path:
    """`folder` with tokenizer and labels beside the graph."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(shape.checkpoint / name, folder / name)
    return folder


def _write_checkpoint(shape: Shape) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=MAX_TOKENS,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(HEAD_SCALE)
    unfinished = _unfinished(shape.checkpoint)
    model.save_pretrained(unfinished)
    vocabulary = unfinished / "vocab.txt"
    vocabulary.write_text("\n".join(_vocabulary()) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab_file=str(vocabulary), model_max_length=MAX_TOKENS).save_pretrained(unfinished)
    unfinished.rename(shape.checkpoint)


def _vocabulary() -> list[str]:
    """The words of the synthetic texts, a token each, single characters for all else, and unused tokens."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = dict.fromkeys([*SPECIAL, *characters, *(f"##{one}" for one in characters), *WORDS])
    return [*words, *(f"[unused{index}]" for index in range(VOCABULARY - len(words)))]
