"""Models of the GPU's measurements: checkpoints of well-known shapes with random weights, and their artifacts.

Weights and tokenizers are made here, so that nothing is downloaded. A cost depends on the shape, not on the weights.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import Say
from benchmarks.load.texts import DOES, WHAT, WHEN, WHO, WORDS
from benchmarks.suites.cluster import CLASSIFY, WRITE
from benchmarks.suites.shapes import BERT_BASE, FOLDER, Shape, ensure_checkpoint, ensure_export
from pipelines.tasks.task import Task

BERT_TINY = Shape("bert-tiny", layers=2, hidden=64, heads=4, intermediate=128)  # of --quick
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LAYER_SCALE = 1.0  # standard deviation of what a layer adds to the residual stream, for one of its input
LOGIT_SCALE = 3.0  # standard deviation of the logits: in fp16 the best token stays the best


@dataclass(frozen=True)
class DecoderShape:
    """A decoder-only model's config, by the names of transformers; `architecture` is its model_type."""

    name: str
    figure: str  # its part of the names of figures
    architecture: str
    vocabulary: int
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return FOLDER / "checkpoints" / self.name


SMOLLM2 = DecoderShape(
    "smollm2-135m",
    "smollm2",
    "llama",
    49_152,
    {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
    },
)
QWEN2 = DecoderShape(
    "qwen2-0.5b",
    "qwen2",
    "qwen2",
    151_936,
    {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
    },
)
QWEN3 = DecoderShape(
    "qwen3-0.6b",
    "qwen3",
    "qwen3",
    151_936,
    {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
    },
)
LLAMA_TINY = DecoderShape(
    "llama-tiny",
    "tiny",
    "llama",
    4096,
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    },
)


@dataclass(frozen=True)
class Models:
    """What is measured on a device: an encoder, decoders, and the precision of their artifacts."""

    device: str
    precision: str
    encoder: Shape
    decoders: tuple[DecoderShape, ...]

    @classmethod
    def of(cls, device: str, *, quick: bool) -> "Models":
        """fp16 for CUDA, fp32 for a CPU, which has no kernels of fp16; `quick` takes tiny shapes."""
        precision = "fp32" if device == "cpu" else "fp16"
        if quick:
            return cls(device, precision, BERT_TINY, (LLAMA_TINY,))
        return cls(device, precision, BERT_BASE, (SMOLLM2, QWEN2))

    def artifact(self, shape: Shape | DecoderShape) -> Path:
        return FOLDER / f"{shape.name}-{self.precision}-{self.device}"

    def ensure(self, say: Say) -> None:
        """Make every checkpoint and artifact that is missing, each export in a process of its own."""
        ensure_checkpoint(self.encoder)
        for decoder in self.decoders:
            write_decoder(decoder)
        wanted: Sequence[tuple[Shape | DecoderShape, Task]] = (
            (self.encoder, CLASSIFY),
            *((decoder, WRITE) for decoder in self.decoders),
        )
        with ThreadPoolExecutor(min(len(wanted), len(os.sched_getaffinity(0)))) as pool:
            for made in [pool.submit(self._export, shape, task, say) for shape, task in wanted]:
                made.result()

    def _export(self, shape: Shape | DecoderShape, task: Task, say: Say) -> Path:
        options = ["--device", self.device, *(["--allow-untrained-head"] if task is CLASSIFY else [])]
        return ensure_export(str(shape.checkpoint), task.name, self.precision, self.artifact(shape), say, *options)


def write_decoder(shape: DecoderShape) -> Path:
    """The checkpoint of a decoder, made where it is missing.

    Every layer adds as much as it gets, so that the next token depends on all of the context: with the usual
    initialization it would be the last token again, and an engine that guesses repetitions would look fast.
    """
    if (shape.checkpoint / "config.json").exists():
        return shape.checkpoint
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer(shape.vocabulary, int(shape.config["max_position_embeddings"]))
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        **ends,
        **shape.config,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.normal_(0.0, LAYER_SCALE / parameter.shape[1] ** 0.5)
        embeddings = model.get_input_embeddings().weight
        model.get_decoder().norm.weight.fill_(LOGIT_SCALE / (float(embeddings.std()) * embeddings.shape[1] ** 0.5))
    unfinished = shape.checkpoint.with_name(f".{shape.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(shape.checkpoint)
    return shape.checkpoint


def _tokenizer(vocabulary: int, longest: int) -> Any:
    """A byte-level BPE that has learned the words of the synthetic texts, filled up with tokens that no text has."""
    import json

    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    phrases = [" ".join((who, does, what, when)) for who in WHO for does in DOES for what in WHAT for when in WHEN]
    trained.train_from_iterator(
        [" ".join(WORDS), *phrases], vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False
    )
    content = json.loads(trained.to_str())
    known = content["model"]["vocab"]
    known |= {f"<unused{index}>": index for index in range(len(known), vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        model_max_length=longest,
    )
