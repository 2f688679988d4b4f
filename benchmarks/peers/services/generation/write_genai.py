"""onnxruntime-genai: the int4 graph that its own model builder makes, greedy, static batches of equal prompts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai
from lines import CHECKPOINT, THREADS, made, serve


def build(folder: Path) -> None:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(CHECKPOINT), "-o", str(folder)]
    options = ["-p", "int4", "-e", "cpu", "-c", str(folder / "cache")]
    subprocess.run([*builder, *options], check=True, stdout=subprocess.DEVNULL)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
    (folder / "genai_config.json").write_text(json.dumps(config))


model = onnxruntime_genai.Model(str(made(build)))


def write(prompts: list[list[int]], new_tokens: int, beams: int, exact: bool) -> list[list[int]]:
    (length,) = {len(prompt) for prompt in prompts}
    longest = length + new_tokens
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(
        do_sample=False,
        batch_size=len(prompts),
        num_beams=beams,
        max_length=longest,
        min_length=longest if exact else 0,
    )
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.asarray(prompts, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(row)[length:]] for row in range(len(prompts))]


if __name__ == "__main__":
    serve(write)
