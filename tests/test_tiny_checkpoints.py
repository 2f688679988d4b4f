"""The checkpoints of the tests are the same in every process: a test that fails can be run again."""

import subprocess
import sys

import pytest

from tests.tiny_checkpoints import DECODERS, ENCODER_DECODERS, ENCODERS, tokenizer_of

ARCHITECTURES = (*ENCODERS, *DECODERS, *ENCODER_DECODERS)


@pytest.fixture(scope="module")
def elsewhere() -> list[str]:
    """What tokenizers of another process make of a text, one line each."""
    script = (
        "import sys; from tests.test_tiny_checkpoints import spelled; print(*map(spelled, sys.argv[1:]), sep='\\n')"
    )
    command = [sys.executable, "-c", script, *ARCHITECTURES]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def spelled(architecture: str) -> str:
    vocabulary = tokenizer_of(architecture).get_vocab()
    return " ".join(sorted(vocabulary, key=vocabulary.__getitem__)).encode("unicode_escape").decode()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tokenizer_is_trained_alike_in_every_process(architecture: str, elsewhere: list[str]) -> None:
    assert spelled(architecture) == elsewhere[ARCHITECTURES.index(architecture)]
