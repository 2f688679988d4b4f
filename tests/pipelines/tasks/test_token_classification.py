"""Token classification against transformers: aggregation, words, characters, and windows over long texts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from export.parity.comparison import TOLERANCE
from pipelines.errors import InvalidInputError, UnusedParametersError
from tests.pipelines.agreement import assert_same
from tests.pipelines.texts import texts

TASK = "token-classification"
TOKENIZERS = ("bert", "roberta", "albert", "xlm-roberta")
TIE = 1e-5  # between two logits: what the runtimes differ by
STRATEGIES = ("none", "simple", "first", "average", "max")
TEXT = (
    "Anna Smith met 김민수 in Genève 👨‍👩‍👧; Zoe\u0308 stayed in Paris [SEP] <unk> last winter. 서울은 한강이 흐른다."
)

Pipelines = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # ours and theirs, about tokenizers without words


def is_decided(pipeline: Any, inputs: str | list[str], **asked: Any) -> bool:
    """Whether each token's best label leads by more than the rounding of two runtimes: random weights tie."""
    several = [inputs] if isinstance(inputs, str) else inputs
    rows = [row for of_one in pipeline.preprocess(several, pipeline.parameters(asked)) for row in of_one]
    best_two = [np.sort(logits, axis=-1)[:, -2:] for logits in pipeline.forward(rows)]
    return all((best[:, 1] - best[:, 0]).min(initial=np.inf) > TIE for best in best_two)


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=25)
@given(
    inputs=st.one_of(texts(), st.lists(texts(), min_size=1, max_size=3)),
    asked=st.fixed_dictionaries(
        {},
        optional={
            "aggregation_strategy": st.sampled_from(STRATEGIES),
            "ignore_labels": st.lists(st.sampled_from(("O", "PER", "B-LOC", "LOC")), max_size=2),
        },
    ),
)
def test_any_text_gets_the_entities_of_transformers(
    architecture: str, inputs: Any, asked: dict[str, Any], loaded: Pipelines, oracle: Pipelines
) -> None:
    assume(is_decided(loaded(architecture, TASK), inputs, **asked))
    assert_same(loaded(architecture, TASK)(inputs, **asked), oracle(architecture, TASK)(inputs, **asked))


@pytest.mark.parametrize("architecture", TOKENIZERS)
@settings(max_examples=15)
@given(
    text=texts().map(lambda text: text * 3),
    strategy=st.sampled_from((None, *STRATEGIES[1:])),
    stride=st.integers(0, 125),
    ignore_labels=st.sampled_from((["O"], [])),
)
@example(text=TEXT * 4, strategy="simple", stride=40, ignore_labels=["O"])
@example(text=TEXT * 4, strategy="first", stride=0, ignore_labels=[])
def test_any_stride_resolves_the_overlaps_of_windows_as_transformers(
    architecture: str,
    text: str,
    strategy: str | None,
    stride: int,
    ignore_labels: list[str],
    loaded: Pipelines,
    oracle: Pipelines,
) -> None:
    asked: dict[str, Any] = {"stride": stride, "ignore_labels": ignore_labels}
    if strategy is not None:
        asked["aggregation_strategy"] = strategy
    assume(is_decided(loaded(architecture, TASK), text, **asked))
    assert_same(loaded(architecture, TASK)(text, **asked), oracle(architecture, TASK)(text, **asked))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_offsets_are_characters_in_korean_emoji_and_combining_marks(
    architecture: str, strategy: str, loaded: Pipelines, oracle: Pipelines
) -> None:
    asked = {"aggregation_strategy": strategy, "ignore_labels": []}
    ours = loaded(architecture, TASK)(TEXT, **asked)
    assert_same(ours, oracle(architecture, TASK)(TEXT, **asked))
    assert ours[-1]["end"] == len(TEXT)


def test_a_tokenizer_that_splits_punctuation_off_its_pieces_agrees_too(loaded: Pipelines, oracle: Pipelines) -> None:
    architecture = "deberta-v2"
    for strategy in STRATEGIES:
        asked = {"aggregation_strategy": strategy, "ignore_labels": []}
        assert_same(loaded(architecture, TASK)(TEXT, **asked), oracle(architecture, TASK)(TEXT, **asked))
    over_windows = {"aggregation_strategy": "average", "stride": 16}
    assert_same(
        loaded(architecture, TASK)(TEXT * 5, **over_windows), oracle(architecture, TASK)(TEXT * 5, **over_windows)
    )


@pytest.mark.parametrize("labels", [("PER", "LOC", "O"), ("B-A-x", "I-A-x", "B-x", "I-x")])
def test_labels_with_and_without_b_and_i_group_as_in_transformers(
    labels: tuple[str, ...], loaded: Pipelines, oracle: Pipelines
) -> None:
    head = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    for strategy in STRATEGIES:
        asked = {"aggregation_strategy": strategy, "ignore_labels": []}
        assert_same(loaded("bert", TASK, **head)(TEXT, **asked), oracle("bert", TASK, **head)(TEXT, **asked))


@settings(max_examples=10)
@given(inputs=st.lists(texts(), min_size=2, max_size=5))
def test_a_batch_of_different_lengths_gives_every_row_its_own_logits(inputs: list[str], loaded: Pipelines) -> None:
    pipeline = loaded("roberta", TASK)
    rows = [row for (row,) in pipeline.preprocess(inputs, pipeline.parameters({}))]
    for row, logits in zip(rows, pipeline.forward(rows), strict=True):
        (alone,) = pipeline.forward([row])
        assert logits.shape == alone.shape == (row.n_tokens, 5)
        # Without a mask, another kernel adds in another order.
        np.testing.assert_allclose(logits, alone, atol=TOLERANCE)


def test_without_a_stride_a_long_text_is_cut_and_with_one_it_is_read_to_its_end(loaded: Pipelines) -> None:
    tag = loaded("bert", TASK)
    text = TEXT * 10
    asked = {"aggregation_strategy": "simple", "ignore_labels": []}
    assert tag(text, **asked)[-1]["end"] < len(TEXT) * 4
    assert tag(text, **asked, stride=16)[-1]["end"] == len(text)


def test_a_tokenizer_that_marks_no_words_says_that_it_falls_back_on_spaces(loaded: Pipelines) -> None:
    with pytest.warns(UserWarning, match="does not mark words: aggregation_strategy 'first' takes for a word what sta"):
        loaded("roberta", TASK)(TEXT, aggregation_strategy="first")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"aggregation_strategy": "none", "stride": 8},
            "parameters.aggregation_strategy is 'none'; allowed: simple, first, average, max, which a stride needs",
        ),
        (
            {"aggregation_strategy": "last"},
            "parameters.aggregation_strategy is 'last'; allowed: none, simple, first, average, max",
        ),
        ({"stride": 128}, "parameters.stride is 128; allowed: below 128, the model's length"),
        ({"stride": 127}, "windows of 128 tokens cannot overlap by 127; allowed: at most 126"),
        ({"stride": -1}, "parameters.stride is -1; allowed: 0 to 16384"),
        ({"ignore_labels": [3]}, "parameters.ignore_labels[0] is 3; allowed: a string of at most 256 characters"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_one_line(asked: dict[str, Any], said: str, loaded: Pipelines) -> None:
    with pytest.raises(InvalidInputError) as caught:
        loaded("bert", TASK)(TEXT, **asked)
    assert str(caught.value) == said


def test_wrong_inputs_and_unknown_parameters_are_refused(loaded: Pipelines) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs is \{'text': .*\.\.\..*\}; allowed: a string$"):
        loaded("bert", TASK)({"text": TEXT})
    with pytest.raises(UnusedParametersError, match=r"not used by the model: \['grouped_entities'\]"):
        loaded("bert", TASK)(TEXT, grouped_entities=True)
