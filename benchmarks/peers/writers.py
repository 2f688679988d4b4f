"""Writers: other engines that generate text, each in a program that answers lines of JSON.

A program in services/ runs in its own Python environment. It converts the checkpoint in PEER_CHECKPOINT to a model in
PEER_MODEL once, and then answers each line {"prompts": [[ids]], "new_tokens", "beams"} with a line
{"tokens": [[ids]], "seconds"}. With "exact" it generates exactly `new_tokens`, else until the end-of-sequence token.
"""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select
from tempfile import TemporaryFile
from typing import IO, Any

from benchmarks.peers.peer import ENVIRONMENTS, SERVICES, Installed, PeerError

PROGRAMS = SERVICES / "generation"
READY_S = 420.0  # a model builder takes minutes
ANSWER_S = 180.0
ENDING_S = 2.0  # for the process to end after its output ended
GENAI, CTRANSLATE2, TRANSFORMERS = "genai", "ctranslate2", "transformers"


@dataclass(frozen=True, kw_only=True)
class Writer(Installed):
    """`serves` says, for people, which model runs on which engine."""

    serves: str
    script: Path


WRITERS = (
    Writer(
        name=GENAI,
        serves="int4 (block 32, accuracy level 4), onnxruntime-genai, static batches",
        script=PROGRAMS / "write_genai.py",
    ),
    Writer(name=CTRANSLATE2, serves="int8, CTranslate2, static batches", script=PROGRAMS / "write_ctranslate2.py"),
    Writer(
        name=TRANSFORMERS,
        serves="model.generate, PyTorch fp32 (fp16 on CUDA), static batches",
        script=PROGRAMS / "write_transformers.py",
        needs=("transformers", "torch"),
    ),
)


@dataclass(frozen=True)
class WriterModel:
    """A checkpoint and its tokenizer.json; `gguf` is the checkpoint's own file where it comes as one. Of the writers,
    transformers alone runs on another `device` than the CPU.
    """

    name: str
    checkpoint: Path
    tokenizer: Path
    threads: int
    gguf: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Written:
    """The new tokens of each prompt, and the seconds that all of them took."""

    tokens: list[list[int]]
    seconds: float


class Running:
    """A program that is ready for prompts."""

    def __init__(self, process: "subprocess.Popen[str]", log: IO[bytes]) -> None:
        self._process, self._log = process, log

    def write(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, *, beams: int = 1, exact: bool = True
    ) -> Written:
        """Generate from token ids; raises PeerError where that fails or takes longer than ANSWER_S."""
        assert self._process.stdin is not None
        asked = {"prompts": prompts, "new_tokens": new_tokens, "beams": beams, "exact": exact}
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(f"ended: {self._last_words()}") from None
        answer = self.line(ANSWER_S)
        return Written(answer["tokens"], float(answer["seconds"]))

    def line(self, timeout_s: float) -> Any:
        """The next line of its output, decoded."""
        assert self._process.stdout is not None
        ready, _, _ = select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise PeerError(f"{'ended' if ready else f'said nothing in {timeout_s:.0f} s'}: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        """The last line of its stderr, and the signal that ended it."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        said = lines[-1].strip() if lines else "nothing was written"
        try:
            status = self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return said
        return said if status >= 0 else f"{said} ({signal.Signals(-status).name})"


def variables(writer: Installed, model: WriterModel) -> dict[str, str]:
    """What a program finds in its environment. It keeps what it makes of a checkpoint in PEER_MODEL."""
    made_from = hashlib.sha256(str(model.checkpoint.resolve()).encode()).hexdigest()[:12]
    return {
        "PEER_CHECKPOINT": str(model.checkpoint.resolve()),
        "PEER_TOKENIZER": str(model.tokenizer.resolve()),
        "PEER_MODEL": str(ENVIRONMENTS / "models" / f"{writer.name}-{made_from}"),
        "PEER_GGUF": str(model.gguf or ""),
        "PEER_THREADS": str(model.threads),
        "PEER_DEVICE": model.device,
        "OMP_NUM_THREADS": str(model.threads),
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def writing(writer: Writer, model: WriterModel) -> Iterator[Running]:
    """The program, ready for prompts; raises PeerError where it does not start."""
    if missing := writer.missing():
        raise PeerError(missing)
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [str(writer.python), str(writer.script)],
            env=os.environ | variables(writer, model),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            running = Running(process, log)
            running.line(READY_S)
            yield running
        finally:
            process.kill()
            process.communicate()
