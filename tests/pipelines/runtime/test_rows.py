"""Rows of different lengths as one batch, padded or packed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Encoding

from pipelines.runtime.encoder import PaddedRows
from pipelines.runtime.rows import Capacity, EncoderRow, PackedRows


def row(ids: list[int], type_ids: list[int] | None = None) -> EncoderRow:
    types = None if type_ids is None else np.array(type_ids, np.int64)
    return EncoderRow.of(Encoding(), np.array(ids, np.int64), types)


def test_rows_are_padded_on_the_right_to_the_longest_and_only_asked_inputs_are_made() -> None:
    rows = [row([5, 6, 7], [0, 1, 1]), row([8], [1])]
    feeds = PaddedRows(("input_ids", "attention_mask", "token_type_ids"), pad_token_id=9).feeds(rows)
    assert feeds["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert feeds["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}
    assert list(PaddedRows(("input_ids",), 9).feeds(rows)) == ["input_ids"]


def test_a_graph_that_wants_type_ids_gets_zeros_from_a_tokenizer_without_them() -> None:
    feeds = PaddedRows(("token_type_ids",), 0).feeds([row([5, 6]), row([7])])
    assert feeds["token_type_ids"].tolist() == [[0, 0], [0, 0]]


PACKED = ("input_ids", "position_ids", "token_type_ids", "cumulative_sequence_length", "batch_shape")


def test_packed_rows_stand_one_after_the_other_and_positions_begin_anew_in_each() -> None:
    feeds = PackedRows(PACKED, pad_token_id=9).feeds([row([5, 6, 7], [0, 1, 1]), row([8], [1])])
    assert feeds["input_ids"].tolist() == [5, 6, 7, 8]
    assert feeds["position_ids"].tolist() == [0, 1, 2, 0]
    assert feeds["token_type_ids"].tolist() == [0, 1, 1, 1]
    assert feeds["cumulative_sequence_length"].tolist() == [0, 3, 4]
    assert feeds["batch_shape"].tolist() == [2, 3]
    assert {name: array.dtype for name, array in feeds.items()} == dict.fromkeys(PACKED, np.int32) | {
        "batch_shape": np.dtype(np.int64)
    }


def test_filler_takes_a_capacity_up_to_its_shape_and_no_row_of_it_is_too_long() -> None:
    layout = PackedRows(PACKED, pad_token_id=9)
    feeds = layout.feeds([row([5, 6, 7]), row([8])], Capacity(tokens=16, rows=6, longest=5))
    assert feeds["input_ids"].tolist() == [5, 6, 7, 8] + [9] * 12
    assert feeds["cumulative_sequence_length"].tolist() == [0, 3, 4, 4, 6, 11, 16]
    assert feeds["position_ids"].tolist()[4:] == [0, 1, *range(5), *range(5)]
    assert feeds["batch_shape"].tolist() == [6, 5]
    output = np.arange(16)
    assert [one.tolist() for one in layout.by_row(output, [row([5, 6, 7]), row([8])])] == [[0, 1, 2], [3]]


@given(st.data())
def test_every_batch_that_a_capacity_holds_has_its_shape(data: st.DataObject) -> None:
    capacity = Capacity(*data.draw(st.sampled_from([(64, 8, 64), (64, 8, 20), (256, 16, 128)])))
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=20))
    rows = [row([5] * n) for n in lengths]
    if not capacity.holds(len(rows), sum(lengths), max(lengths)):
        return
    feeds = PackedRows(PACKED, 0).feeds(rows, capacity)
    ends = feeds["cumulative_sequence_length"]
    filled = np.diff(ends)
    assert (len(feeds["input_ids"]), len(filled), ends[-1]) == (capacity.tokens, capacity.rows, capacity.tokens)
    assert filled[: len(rows)].tolist() == lengths
    assert 0 <= filled.min() <= filled.max() <= capacity.longest
    assert ends[-2] < capacity.tokens  # the last row has a first token


def test_a_capacity_without_room_for_filler_holds_nothing() -> None:
    capacity = Capacity(tokens=8, rows=2, longest=8)
    assert capacity.holds(rows=1, tokens=7, longest=7)
    assert not capacity.holds(rows=1, tokens=8, longest=8)
    assert not capacity.holds(rows=2, tokens=7, longest=4)
    assert not Capacity(tokens=64, rows=2, longest=16).holds(rows=1, tokens=8, longest=8)
    assert not Capacity(tokens=64, rows=8, longest=16).holds(rows=1, tokens=17, longest=17)
