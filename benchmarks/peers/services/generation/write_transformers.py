"""transformers: model.generate in PyTorch, fp32 or on CUDA fp16 with SDPA, static batches of equal prompts."""

import torch
from lines import CHECKPOINT, DEVICE, THREADS, serve
from transformers import AutoModelForCausalLM

torch.set_num_threads(THREADS)
dtype = torch.float32 if DEVICE == "cpu" else torch.float16
model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=dtype).to(DEVICE).eval()


def write(prompts: list[list[int]], new_tokens: int, beams: int, exact: bool) -> list[list[int]]:
    given = torch.tensor(prompts, device=DEVICE)
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
