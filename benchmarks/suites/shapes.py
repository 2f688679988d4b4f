"""Shapes: models of well-known sizes with random weights. A forward's cost depends on the shape, not on the weights.

The checkpoint is made from a config and exported by `sextet export`. Checkpoint and artifact stay under models/bench.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Say
from benchmarks.figures.result import ROOT
from benchmarks.load.texts import WORDS
from benchmarks.suites.cluster import CLASSIFY
from pipelines.errors import ArtifactError, SextetError
from pipelines.runtime.artifact import ModelArtifact

FOLDER = ROOT / "models" / "bench"
VOCABULARY = 30_522  # of bert-base-uncased, for embeddings of the same size
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 512
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
    def optimum(self) -> Path:
        return FOLDER / "optimum" / self.name


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


def ensure_optimum(shape: Shape, say: Say) -> Path:
    """What Optimum alone makes of a shape's checkpoint for text-classification, made where it is missing.

    It uses Optimum's exporter, and its dynamic quantization per channel for a CPU with VNNI.
    """
    if not (shape.optimum / "model.onnx").exists():
        say(f"making {shape.optimum.relative_to(ROOT)}")
        from optimum.exporters.onnx import main_export
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        unfinished = shape.optimum.with_name(f".{shape.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        main_export(str(shape.checkpoint), unfinished / "fp32", task=CLASSIFY.name, do_validation=False)
        quantizer = ORTQuantizer.from_pretrained(unfinished / "fp32", file_name="model.onnx")
        settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        quantizer.quantize(save_dir=unfinished / "int8", quantization_config=settings, file_suffix="")
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            shutil.copyfile(shape.checkpoint / name, unfinished / "int8" / name)
        (unfinished / "int8").rename(shape.optimum)
        shutil.rmtree(unfinished)
    return shape.optimum


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
    unfinished = shape.checkpoint.with_name(f".{shape.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
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
