"""transformers: model.generate in PyTorch, fp32, static batches of equal prompts."""

import torch
from lines import CHECKPOINT, THREADS, serve
from transformers import AutoModelForCausalLM

torch.set_num_threads(THREADS)
model = AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval()


def write(prompts: list[list[int]], new_tokens: int, beams: int, exact: bool) -> list[list[int]]:
    given = torch.tensor(prompts)
    least = new_tokens if exact else None
    with torch.inference_mode():
        written = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            num_beams=beams,
            max_new_tokens=new_tokens,
            min_new_tokens=least,
        )
    return [row[given.shape[1] :] for row in written.tolist()]


if __name__ == "__main__":
    serve(write)
