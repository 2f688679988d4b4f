"""The README, as a new user follows it: its commands are run as they stand, and must print what it says.

Digits do not count: scores differ in their last places. Where a CPU has no exact int8 products, weights have seven bits
and an answer of a small model may differ as a whole, so only the shape of what is printed counts there.
"""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.quantization.quantize import has_exact_int8

ROOT = Path(__file__).parents[2]
SURE_CHARACTERS = 80  # of a long answer: two words may be so close that another CPU's rounding goes on with the other
FIRST_START_S = 1500.0  # `make serve` may have to build every artifact first

# The first of these tests waits for the export of every artifact.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(FIRST_START_S + 120)]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def comparable(text: str) -> str:
    answers = text if has_exact_int8() else re.sub(r"-> .*", "-> ...", text)
    sure = re.sub(rf"(-> .{{{SURE_CHARACTERS}}}).*", r"\1...", answers)
    return re.sub(r"\d+(\.\d+)?", "#", sure).strip()


@pytest.fixture(scope="module")
def served() -> Iterator[list[str]]:
    """`make serve`, and what it printed to stdout; SIGTERM ends it and frees the port."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0, "the README's port 8000 is taken on this machine"
    process = subprocess.Popen(["make", "serve"], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    lines: list[str] = []
    assert process.stdout is not None
    give_up_at = time.monotonic() + FIRST_START_S
    expected = len(blocks("README.md", "text")[0].splitlines())
    try:
        for line in process.stdout:
            if lines or line.startswith("ready "):
                lines.append(line.rstrip("\n"))
            if len(lines) == expected:
                break
            assert time.monotonic() < give_up_at
        yield lines
    finally:
        process.terminate()  # make hands it on; a SIGINT it leaves to the terminal
        process.communicate(timeout=60)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 8000)) != 0


def test_make_serve_prints_what_the_readme_says(served: list[str]) -> None:
    assert comparable("\n".join(served)) == comparable(blocks("README.md", "text")[0])


def test_the_curl_command_gets_the_answer_of_the_readme(served: list[str]) -> None:
    answer = subprocess.run(["bash", "-c", blocks("README.md", "sh")[0]], capture_output=True, text=True, check=True)

    assert comparable(answer.stdout) == comparable(blocks("README.md", "json")[0])


def test_the_client_gets_the_answer_of_the_readme(served: list[str]) -> None:
    program = blocks("README.md", "python")[0]
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == blocks("README.md", "text")[1].strip()


def test_the_python_without_a_server_runs(served: list[str]) -> None:
    subprocess.run([sys.executable, "-c", blocks("README.md", "python")[1]], cwd=ROOT, check=True)
