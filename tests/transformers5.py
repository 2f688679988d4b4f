"""Checkpoints of architectures that transformers 5 alone has, and its own answers: what the environment of the exporter
transformers5 runs for the tests.

python -m tests.transformers5 < requests.json > answers.json

A request is {"architecture", "task", "tokenizer": a folder, "folder": where the checkpoint goes, "config", "texts",
"new_tokens"}. An answer holds, for each text, the ids that `model.generate` writes greedily, or the logits.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv" / "transformers5" / "bin" / "python"


def answered(requests: Sequence[dict[str, Any]]) -> list[Any]:
    """Write the checkpoints and ask transformers 5, in its environment."""
    process = subprocess.run(
        [str(PYTHON), "-m", "tests.transformers5"],
        input=json.dumps(list(requests)), capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    answers: list[Any] = json.loads(process.stdout.splitlines()[-1])
    return answers


def _answer(request: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoTokenizer

    from tests.model_types import tiny_config
    from tests.tiny_checkpoints import model_class_of, randomize

    folder = Path(request["folder"])
    shutil.copytree(request["tokenizer"], folder, dirs_exist_ok=True)
    config = tiny_config(request["architecture"], **request["config"])
    torch.manual_seed(sum(map(ord, request["architecture"])))
    model = model_class_of(config, request["task"]).from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # after the config, which decides of which class it is
    if not model.can_generate():
        with torch.no_grad():
            return [dict(model(**tokenizer(one, return_tensors="pt"))) for one in request["texts"]]
    given = [tokenizer(one, return_tensors="pt") for one in request["texts"]]
    made = [model.generate(**one, do_sample=False, max_new_tokens=request["new_tokens"]) for one in given]
    return [ids[0].tolist() for ids in made]


if __name__ == "__main__":
    answers = [_answer(request) for request in json.load(sys.stdin)]
    print(json.dumps(answers, default=lambda tensor: tensor.tolist()))
