import pytest

from pipelines.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n one\ntwo\n"), "one"),
        (ValueError(), "ValueError"),
        (OSError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
    ],
)
def test_the_first_line_of_an_error_is_its_message_or_its_type(error: Exception, line: str) -> None:
    assert first_line(error) == line
