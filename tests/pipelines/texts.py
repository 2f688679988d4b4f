"""Texts that tokenizers stumble over, of no length to more than a tiny model reads."""

from hypothesis import strategies as st

_PIECES = (
    *("The film was wonderful", "Anna Smith", "Paris", "last winter.", "1,234", "don't", "naïve", "ﬁne", "Straße"),
    *(
        "정말 재미있는 영화였어요",
        "서울은",
        "한국어",
        "ㅋㅋ",
        "日本の首都",
        "Москва",
        "الكتاب",
        "café",
        "e\u0301\u0323",
    ),
    *("😀", "👨‍👩‍👧", "🎉🎉", "👍🏽", "\u200b", "\u00ad", "\u0000", "\u0007", "\ufeff", "\ufffd", "\u2028", "�"),
    *("[SEP]", "[CLS]", "[UNK]", "[PAD]", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "##ing", "▁", "Ġ"),
)
_SEPARATORS = ("", " ", " ", "  ", "\n", "\t", "\r\n", "\u3000", "\u00a0", ", ")
_TIMES = (1, 1, 1, 1, 20)


def texts(min_size: int = 0) -> st.SearchStrategy[str]:
    """Mixed scripts, emoji, combining marks, control characters, literal special tokens, now and then over-long."""
    piece = st.one_of(st.sampled_from(_PIECES), st.text(max_size=5))
    words = st.lists(st.tuples(piece, st.sampled_from(_SEPARATORS)), max_size=12)
    return st.builds(
        lambda pairs, times: "".join(piece + separator for piece, separator in pairs) * times,
        words,
        st.sampled_from(_TIMES),
    ).filter(lambda text: len(text) >= min_size)
