"""Encoder: rows of different lengths as one padded batch."""

import numpy as np
from tokenizers import Encoding

from pipelines.runtime.encoder import EncoderRow, pad


def row(ids: list[int], type_ids: list[int] | None = None) -> EncoderRow:
    types = None if type_ids is None else np.array(type_ids, np.int64)
    return EncoderRow(Encoding(), np.array(ids, np.int64), types)


def test_rows_are_padded_on_the_right_to_the_longest_and_only_asked_inputs_are_made() -> None:
    rows = [row([5, 6, 7], [0, 1, 1]), row([8], [1])]
    feeds = pad(rows, pad_token_id=9, names=("input_ids", "attention_mask", "token_type_ids"))
    assert feeds["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert feeds["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}
    assert list(pad(rows, 9, ("input_ids",))) == ["input_ids"]


def test_a_graph_that_wants_type_ids_gets_zeros_from_a_tokenizer_without_them() -> None:
    feeds = pad([row([5, 6]), row([7])], 0, ("token_type_ids",))
    assert feeds["token_type_ids"].tolist() == [[0, 0], [0, 0]]
