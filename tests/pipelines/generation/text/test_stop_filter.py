"""What of an answer may be shown while it grows: everything before the first stop string, never a part of one."""

from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.generation.text.detokenizer import StopFilter

SHORT = st.text("abㅎ", min_size=1, max_size=4)


@given(pieces=st.lists(st.text("abㅎ", max_size=3), max_size=12), stops=st.lists(SHORT, max_size=3))
@example(pieces=["a", "a", "b"], stops=["ab"])
@example(pieces=["ab"], stops=["b", "ab"])
def test_the_text_ends_before_its_first_stop_string_however_it_was_cut(pieces: list[str], stops: list[str]) -> None:
    visible, shown = StopFilter(stops), ""
    for piece in pieces:
        shown += visible.push(piece)
        assert not any(stop in shown for stop in stops)
        if visible.stopped:
            break
    shown += visible.finish()

    text = "".join(pieces)
    found = [text.index(stop) for stop in stops if stop in text]
    if visible.stopped:
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert (shown, found) == (text, [])


def test_without_stop_strings_nothing_waits() -> None:
    visible = StopFilter(())

    assert [visible.push(piece) for piece in ("a", "", "b")] == ["a", "", "b"]
    assert (visible.finish(), visible.stopped) == ("", False)
