"""tokenizer.json of every architecture, and the fast tokenizers that are made for Marian and M2M100."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from export.build import ExportArgs, export_checkpoint
from export.parity.samples import ODD_TEXTS, TEXTS
from export.tokenizers.pieces import PieceTokenizer
from export.tokenizers.tokenizer import convert_slow, prove_equal
from pipelines.errors import CheckpointError
from pipelines.runtime.artifact import ModelArtifact
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.tokenizer import Tokenizer
from tests.tiny_checkpoints import CORPUS

Make = Callable[..., Path]

# Everything that the tiny vocabularies know, what they do not, and what normalization changes. Without single marks
# and jamo: SentencePiece composes them with a bare letter only, NFC also with one that has another mark.
ALPHABET = [
    character
    for character in sorted({*"".join(CORPUS), *"ＡｂΩЖ首都한글ﬁ①½\t\n\u00a0\u3000\u200b🎉👩‍🚀<>▁"})
    if unicodedata.normalize("NFC", "a" + character) == "a" + character and not "\u1100" <= character <= "\u11ff"
]
SLOW = ("marian", "m2m_100")


@pytest.fixture(scope="module", params=SLOW)
def pair(request: pytest.FixtureRequest, checkpoint: Make) -> tuple[Any, PieceTokenizer]:
    """A slow tokenizer and its fast version."""
    slow = AutoTokenizer.from_pretrained(checkpoint(request.param, "translation"))
    return slow, convert_slow(slow)


def encode(fast: PieceTokenizer, text: str, unknown: int) -> list[int]:
    """Ids as the exported graph reads them."""
    return [unknown if fast.outside and index >= fast.outside else index for index in fast.backend.encode(text).ids]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=ALPHABET, max_size=60))
@example(text="\u00a0\u200d")  # U+200D stays when the space before it is normalized
@example(text="a\u00a0\u200d\u200c b\u00b2\u200ca \u00bd\ufe0f\u2460\ufe0f \u00b2\u200d\u00aa")
def test_a_converted_tokenizer_encodes_any_text_as_the_slow_one(pair: tuple[Any, PieceTokenizer], text: str) -> None:
    slow, fast = pair
    assert encode(fast, text, slow.unk_token_id) == slow(text).input_ids


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_converted_tokenizer_decodes_any_ids_as_the_slow_one(
    pair: tuple[Any, PieceTokenizer], data: st.DataObject
) -> None:
    slow, fast = pair
    ids = data.draw(st.lists(st.integers(0, len(slow.get_vocab()) - 1), max_size=20))
    assert fast.backend.decode(ids) == slow.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("architecture", SLOW)
def test_pieces_that_the_vocabulary_lacks_become_the_unknown_token(
    architecture: str, checkpoint: Make, tmp_path: Path
) -> None:
    """Opus-MT numbers only the pieces that its training data had; SentencePiece cuts into all of them."""
    folder = shutil.copytree(checkpoint(architecture, "translation"), tmp_path / "holes")
    drop_pieces(folder)
    slow = AutoTokenizer.from_pretrained(folder)

    artifact = export_checkpoint(ExportArgs(str(folder), "translation", tmp_path / "artifact"))
    encoder = InferenceSession(artifact.graph("encoder"), SessionConfig())
    for text in (*TEXTS, *ODD_TEXTS):
        text = text[:80]
        theirs = slow(text).input_ids
        ours = Tokenizer(artifact).encode([text])[0].ids
        read = [
            encoder.run({"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)})
            for ids in (theirs, ours)
        ]
        for name, values in read[0].items():
            np.testing.assert_array_equal(values, read[1][name], err_msg=text)


def drop_pieces(folder: Path) -> None:
    """Take every tenth piece out of vocab.json."""
    file = folder / "vocab.json"
    vocabulary = json.loads(file.read_text())
    dropped = {piece for piece, index in vocabulary.items() if index % 10 == 7 and "<" not in piece}
    file.write_text(json.dumps({f"unused{i}" if piece in dropped else piece: i for piece, i in vocabulary.items()}))


def test_a_converted_tokenizer_that_differs_is_refused(pair: tuple[Any, PieceTokenizer]) -> None:
    slow, fast = pair
    wrong = PieceTokenizer(fast.backend.__class__.from_str(fast.backend.to_str()), fast.outside)
    wrong.backend.normalizer = None
    with pytest.raises(CheckpointError, match=rf"no fast tokenizer equals {type(slow).__name__}: it encodes "):
        prove_equal(wrong, slow)
    wrong = PieceTokenizer(fast.backend.__class__.from_str(fast.backend.to_str()), fast.outside)
    wrong.backend.decoder = None
    with pytest.raises(CheckpointError, match=r": it decodes .* differently"):
        prove_equal(wrong, slow)


def test_a_slow_tokenizer_of_another_kind_is_refused(checkpoint: Make) -> None:
    from transformers import BertTokenizer

    slow = BertTokenizer.from_pretrained(checkpoint("bert", "text-classification"))
    with pytest.raises(CheckpointError, match=r"BertTokenizer has no fast version .* Marian .* and M2M100"):
        convert_slow(slow)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("bert", "text-classification"),
        ("roberta", "text-classification"),
        ("deberta-v2", "text-classification"),
        ("albert", "text-classification"),
        ("llama", "text-generation"),
        ("t5", "translation"),
        ("marian", "translation"),
    ],
)
def test_the_artifact_tokenizes_as_the_checkpoint_does(
    architecture: str, task: str, exported: Make, checkpoint: Make
) -> None:
    reference = AutoTokenizer.from_pretrained(checkpoint(architecture, task))
    ours = Tokenizer(ModelArtifact.open(exported(architecture, task)))
    for text in (*TEXTS, *ODD_TEXTS):
        assert ours.encode([text])[0].ids == reference(text).input_ids, text


@pytest.mark.parametrize(
    ("architecture", "task", "expected"),
    [
        ("bert", "text-classification", 128),
        ("roberta", "text-classification", 128),  # 130 positions, of which two are never used
        ("gpt2", "text-generation", 256),
        ("t5", "translation", 128),
    ],
)
def test_the_longest_input_is_what_positions_and_tokenizer_allow(
    architecture: str, task: str, expected: int, exported: Make
) -> None:
    assert ModelArtifact.open(exported(architecture, task)).manifest.tokenizer.max_length == expected


def test_a_tokenizer_without_a_limit_leaves_it_to_the_positions(checkpoint: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("roberta", "text-classification"), tmp_path / "roberta")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": int(1e30)}))

    artifact = export_checkpoint(ExportArgs(str(folder), "text-classification", tmp_path / "artifact"))

    assert artifact.manifest.tokenizer.max_length == 128


def test_the_settings_hold_special_ids_and_languages(exported: Make, checkpoint: Make) -> None:
    slow = AutoTokenizer.from_pretrained(checkpoint("m2m_100", "translation"))
    m2m = ModelArtifact.open(exported("m2m_100", "translation")).manifest.tokenizer
    assert m2m.languages["ko"] == slow.get_lang_id("ko")
    assert len(m2m.languages) == 100
    assert (m2m.bos_token_id, m2m.pad_token_id, m2m.eos_token_id, m2m.unk_token_id) == (0, 1, 2, 3)

    bert = ModelArtifact.open(exported("bert", "text-classification")).manifest.tokenizer
    assert bert.token_type_ids
    assert bert.languages == {}
    assert not ModelArtifact.open(exported("roberta", "text-classification")).manifest.tokenizer.token_type_ids
