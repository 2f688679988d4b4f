"""Pieces: a fast tokenizer from a SentencePiece model and a separate vocabulary, for Marian and M2M100.

Their slow tokenizers cut a text with SentencePiece and look each piece up in vocab.json. That file holds more pieces
(those of the target language) and may lack some. A `tokenizers` model numbers its own pieces, so here

* a piece that vocab.json lacks gets an id above the vocabulary, which stands for the unknown token. The ids begin at
  `PieceTokenizer.outside`; the exported graph maps them back (`export.graphs.convert.map_to_unknown`).
* a piece of vocab.json that SentencePiece never produces is kept for decoding, behind a marker that no text holds.
* a piece whose characters SentencePiece does not know is found where such characters stand alone, because the slow
  tokenizers look up stretches of unknown characters, too. Fences mark these stretches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

_SPACE = "▁"
_UNREACHABLE = "\uffff"  # a noncharacter: before a piece, it keeps texts from matching it
_FENCE = "\ufffe"  # a noncharacter, around each stretch of unknown characters
_JOINERS = r"\x{200d}\x{fe00}-\x{fe0f}"  # they extend the character before them and compose with none
_BREAK = "\ufdd0"  # a noncharacter, before joiners while characters are mapped
_NON_JOINER = "\u200c"
_NORMAL, _USER_DEFINED = 1, 4  # kinds of pieces that texts can match
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True)
class PieceTokenizer:
    """`backend` returns ids from `outside` on where the slow tokenizer returns the unknown token, unless None."""

    backend: Any
    outside: int | None


def build(
    model: Path, vocabulary: Mapping[str, int], *, special: Sequence[str], split: Sequence[str], unknown: str
) -> PieceTokenizer:
    """The tokenizer that cuts like the SentencePiece file `model` and numbers like `vocabulary`.

    `vocabulary` holds every token that the checkpoint numbers, also those of `special` (removed when decoding) and
    `split` (kept): both are found in a text before it is cut. Raises ValueError for a model that is neither Unigram
    nor BPE.
    """
    proto = _read(model)
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in (_NORMAL, _USER_DEFINED)}
    characters = set().union(*scores)
    first_free = max(vocabulary.values()) + 1
    missing = [piece for piece in scores if piece not in vocabulary]
    ids: dict[str, int] = {}
    for piece, index in vocabulary.items():
        if piece in scores or piece in special or piece in split:
            ids[piece] = index
        elif characters.isdisjoint(piece):
            ids[_FENCE + piece + _FENCE] = index
        else:
            ids[_UNREACHABLE + piece] = index
    ids |= {piece: first_free + index for index, piece in enumerate(missing)}
    backend = tokenizers.Tokenizer(_model(proto.trainer_spec.model_type, ids, scores, unknown))
    backend.normalizer = _normalizer(proto.normalizer_spec, characters)
    if not any(_SPACE in piece[1:] for piece in scores):  # no piece spans words: cut there first, it is faster
        backend.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(f"[{_UNREACHABLE}{_FENCE}]"), ""),
            decoders.Replace(_SPACE, " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"\A\s+|\s+\z"), ""),
        ]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in split])
    return PieceTokenizer(backend, first_free if missing else None)


def surround(backend: Any, before: Sequence[str], after: Sequence[str], vocabulary: Mapping[str, int]) -> None:
    """Put special tokens around every text."""
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B", *after],
        special_tokens=[(token, vocabulary[token]) for token in dict.fromkeys([*before, *after])],
    )


def _read(model: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    return proto


def _model(kind: int, ids: Mapping[str, int], scores: Mapping[str, float], unknown: str) -> Any:
    if kind == _BPE:
        return models.BPE(dict(ids), _merges(scores), unk_token=unknown, fuse_unk=True)
    if kind != _UNIGRAM:
        raise ValueError("the SentencePiece model is neither Unigram nor BPE")
    # Unreachable entries carry the lowest score, from which the penalty of an unknown character is counted.
    lowest = min(scores.values())
    rows = sorted(ids.items(), key=lambda row: row[1])
    if [index for _, index in rows] != list(range(len(rows))):
        raise ValueError("the vocabulary's ids have gaps")
    scores = {piece: 0.0 for piece in ids if piece.startswith(_FENCE)} | dict(scores)
    return models.Unigram([(piece, scores.get(piece, lowest)) for piece, _ in rows], unk_id=ids[unknown])


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others; the best piece is merged first, as SentencePiece does."""
    merges = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: -merge[0])]


def _normalizer(spec: Any, characters: set[str]) -> Any:
    """SentencePiece's own normalization, then its treatment of spaces, in its order; then fences."""
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        # The character map composes what was decomposed; `Precompiled` looks up single characters, so compose first.
        # It takes a short character and the joiners after it for one, and loses them where it maps the character
        # (a no-break space before U+200D). So the non-joiner, which the map itself changes, is mapped before, and a
        # break keeps the others apart.
        mapped = normalizers.Precompiled(spec.precompiled_charsmap)
        steps += [
            normalizers.Replace(_NON_JOINER, mapped.normalize_str(_NON_JOINER)),
            normalizers.NFC(),
            normalizers.Replace(Regex(f"(?<=[^{_JOINERS}])(?=[{_JOINERS}])"), _BREAK),
            mapped,
            normalizers.Replace(_BREAK, ""),
        ]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
    steps.append(normalizers.Replace(" ", _SPACE))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    known = "".join(sorted(f"\\x{{{ord(character):x}}}" for character in characters | {_SPACE}))
    steps.append(
        normalizers.Replace(Regex(f"(?<=[{known}]|\\A)(?=[^{known}])|(?<=[^{known}])(?=[{known}]|\\z)"), _FENCE)
    )
    return normalizers.Sequence(steps)
