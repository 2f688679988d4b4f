"""Shapes: models of well-known sizes with random weights, to measure what a server adds to any model of that size.

The checkpoint is made from a config alone and goes through the real `sextet export`; both are kept under models/bench
and used again. What a forward costs depends on the shape, not on the weights.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import ROOT
from benchmarks.texts import WORDS
from pipelines.errors import SextetError

FOLDER = ROOT / "models" / "bench"
VOCABULARY = 30_522  # of bert-base-uncased: the embeddings have its size, too
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 512
HEAD_SCALE = 25.0  # makes the logits of random weights differ enough to be compared with PyTorch


class ShapeError(SextetError):
    """The export refused what was made for it; it has said why."""


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
MINILM_L6 = Shape("minilm-l6", layers=6, hidden=384, heads=12, intermediate=1536)


def ensure(shape: Shape, say: Callable[[str], None]) -> Path:
    """The int8 artifact of a shape for text-classification, made where it is missing; raises ShapeError."""
    if not (shape.artifact / "artifact.json").exists():
        say(f"making {shape.artifact.relative_to(ROOT)}")
        if not (shape.checkpoint / "config.json").exists():
            _write_checkpoint(shape)
        options = ["--task", "text-classification", "--precision", "int8", "--allow-untrained-head"]
        command = [sys.executable, "-m", "sextet", "export", str(shape.checkpoint), *options]
        finished = subprocess.run([*command, "--output", str(shape.artifact)], cwd=ROOT, check=False)
        if finished.returncode:
            raise ShapeError(f"{shape.name} was not exported; the export's own message is above")
    return shape.artifact


def ensure_optimum(shape: Shape, say: Callable[[str], None]) -> Path:
    """What Optimum alone makes of a shape's checkpoint for text-classification, made where it is missing.

    Its exporter, and its dynamic quantization per channel for a CPU with VNNI: what people serve who do not have us.
    """
    if not (shape.optimum / "model.onnx").exists():
        say(f"making {shape.optimum.relative_to(ROOT)}")
        from optimum.exporters.onnx import main_export
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        unfinished = shape.optimum.with_name(f".{shape.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        main_export(str(shape.checkpoint), unfinished / "fp32", task="text-classification", do_validation=False)
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
