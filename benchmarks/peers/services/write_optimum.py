"""Optimum: ORTModelForCausalLM.generate on the graph that it exports, fp32, its whole cache copied at every step."""

from pathlib import Path

import onnxruntime
import torch
from lines import CHECKPOINT, THREADS, made, serve
from optimum.onnxruntime import ORTModelForCausalLM


def export(folder: Path) -> None:
    ORTModelForCausalLM.from_pretrained(CHECKPOINT, export=True).save_pretrained(folder)


options = onnxruntime.SessionOptions()
options.intra_op_num_threads = THREADS
model = ORTModelForCausalLM.from_pretrained(made(export), session_options=options)


def write(prompts: list[list[int]], new_tokens: int, beams: int, exact: bool) -> list[list[int]]:
    answers = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        written = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            num_beams=beams,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens if exact else None,
        )
        answers.append(written[0, len(prompt) :].tolist())
    return answers


if __name__ == "__main__":
    serve(write)
