"""Tokenizer: an artifact's tokenizer.json and the settings that it does not hold.

`tokenizers.Tokenizer` keeps its truncation as mutable state, so one instance cannot serve two requests with different
lengths at once. Here every truncation has an instance of its own, configured before its first use, that shares the
vocabulary, the large part, with all others; making one takes well below a millisecond.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import tokenizers
from tokenizers import Encoding

from pipelines.errors import ArtifactError, InputTooLongError, InvalidInputError
from pipelines.runtime.artifact import ModelArtifact

TextOrPair = str | tuple[str, str]

_CONFIGURATIONS_KEPT = 64
_MOST_WINDOW_TOKENS = 2**21  # of all windows of one request: half a gigabyte of encodings
# What transformers' `clean_up_tokenization` undoes after decoding, in its order.
_SPACED = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class Tokenizer:
    """Text to `tokenizers.Encoding` and ids to text, as the checkpoint's fast tokenizer does; thread-safe.

    Encodings are never padded. Offsets are in characters of the given text. Texts are processed in Rust
    with the GIL released.
    """

    def __init__(self, artifact: ModelArtifact) -> None:
        self.settings = artifact.manifest.tokenizer
        file = artifact.path / "tokenizer.json"
        try:
            self._full = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the binding raises plain Exception, for a missing file too
            raise ArtifactError(f"{file} cannot be read ({error}); export it again") from None
        self._full.no_truncation()
        self._full.no_padding()
        self._decoder = self._full.decoder
        # Whether tokens that continue a word are marked as such (WordPiece's `##`).
        self.marks_words = bool(getattr(self._full.model, "continuing_subword_prefix", None))
        self._truncating = lru_cache(maxsize=_CONFIGURATIONS_KEPT)(self._make_truncating)

    def encode(
        self,
        inputs: Sequence[TextOrPair],
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        offsets: bool = True,
    ) -> list[Encoding]:
        """One encoding per text or pair, cut to `max_length` tokens where given (of a pair, the longer text first).

        Special tokens count. Without `offsets` those are all zero, and encoding is faster.
        """
        tokenizer = self._full if max_length is None else self._truncating(max_length, 0, "longest_first")
        encode_batch = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        encodings: list[Encoding] = encode_batch(list(inputs), add_special_tokens=add_special_tokens)
        return encodings

    def encode_literally(self, text: str) -> Encoding:
        """The encoding of a text as plain characters: `</s>` in it is no special token. No special tokens are added."""
        encoding: Encoding = self._literal.encode(text, add_special_tokens=False)
        return encoding

    def windows(
        self, inputs: Sequence[TextOrPair], *, max_length: int, stride: int, sequence: int = 0
    ) -> list[list[Encoding]]:
        """All windows of each input: encodings of at most `max_length` tokens that overlap by `stride` tokens.

        Windows move over text number `sequence` (0 or 1) of a pair; each holds the whole other text. Raises
        InvalidInputError where the fixed tokens of a window leave at most `stride` tokens to the moving text, and, as
        tokenizers does, for a stride that is too large for any text. Raises InputTooLongError for more windows than one
        request may hold.
        """
        longest_stride = max_length - self._full.num_special_tokens_to_add(False)
        if stride > longest_stride:
            raise InvalidInputError(
                f"windows of {max_length} tokens cannot overlap by {stride}; allowed: at most {longest_stride}"
            )
        whole = self.encode(inputs)
        too_long = [index for index, encoding in enumerate(whole) if len(encoding) > max_length]
        windows = [[encoding] for encoding in whole]
        if too_long:
            n_windows = 0
            for index in too_long:
                moving = whole[index].sequence_ids.count(sequence)
                fixed = len(whole[index]) - moving
                # tokenizers panics where there is none.
                _require_room(max_length, stride, fixed=fixed)
                n_windows += 1 + moving // (max_length - fixed - stride)
            if n_windows * max_length > _MOST_WINDOW_TOKENS:
                raise InputTooLongError(
                    f"needs {n_windows} windows of {max_length} tokens, with a stride of {stride}; allowed: "
                    f"{_MOST_WINDOW_TOKENS // max_length} windows, by a shorter text or a smaller stride",
                    ("inputs",),
                )
            tokenizer = self._truncating(max_length, stride, ("only_first", "only_second")[sequence])
            for index, first in zip(too_long, tokenizer.encode_batch([inputs[i] for i in too_long]), strict=True):
                windows[index] = [first, *first.overflowing]
        return windows

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of `ids`; `clean_up_tokenization_spaces` None means what the checkpoint's tokenizer does."""
        text: str = self._full.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.settings.clean_up_tokenization_spaces
        return clean_up_spaces(text) if clean_up_tokenization_spaces else text

    def token(self, token_id: int) -> str:
        """The vocabulary's string of an id, with markers such as `##`; "" for an unknown id."""
        token: str | None = self._full.id_to_token(token_id)
        return token or ""

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary string, None where there is no such token."""
        token_id: int | None = self._full.token_to_id(token)
        return token_id

    def join(self, tokens: Sequence[str]) -> str:
        """Vocabulary strings as text, markers resolved; strings that are not in the vocabulary are kept."""
        text: str = " ".join(tokens) if self._decoder is None else self._decoder.decode(list(tokens))
        return text

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` skips."""
        return frozenset(index for index, token in self._full.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        tokenizer = self._shared()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _make_truncating(self, max_length: int, stride: int, strategy: str) -> tokenizers.Tokenizer:
        tokenizer = self._shared()
        tokenizer.enable_truncation(
            max_length, stride=stride, strategy=strategy, direction=self.settings.truncation_side
        )
        return tokenizer

    def _shared(self) -> tokenizers.Tokenizer:
        """A tokenizer that shares every component with the full one, and whose settings are its own."""
        tokenizer = tokenizers.Tokenizer(self._full.model)
        for component in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if (shared := getattr(self._full, component)) is not None:
                setattr(tokenizer, component, shared)
        # In the order of their ids, as reading tokenizer.json numbers them.
        added = self._full.get_added_tokens_decoder()
        tokenizer.add_tokens([added[token_id] for token_id in sorted(added)])
        return tokenizer


def clean_up_spaces(text: str) -> str:
    """`text` without the spaces before punctuation that word tokenizers leave, as transformers removes them."""
    for spaced, joined in _SPACED.items():
        text = text.replace(spaced, joined)
    return text


def _require_room(max_length: int, stride: int, *, fixed: int) -> None:
    room = max_length - fixed
    if room <= stride:
        raise InvalidInputError(
            f"a window of {max_length} tokens holds {fixed} fixed ones (question and special tokens), which leaves "
            f"{max(room, 0)} to the text: more than the stride of {stride} is needed"
        )
