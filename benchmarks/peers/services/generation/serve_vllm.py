"""vLLM's CPU build with its own OpenAI server: bf16, continuous batching, chunked prefill."""

import os
import sys

CACHE_GIB = "2"
LONGEST = "2304"
MODULE = "vllm.entrypoints.openai.api_server"  # the command `vllm` asks for the metadata of a package that it is not in

if __name__ == "__main__":
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": CACHE_GIB,
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{int(os.environ['PEER_THREADS']) - 1}",
        "VLLM_NO_USAGE_STATS": "1",
    }
    options = {
        "--model": os.environ["PEER_CHECKPOINT"],
        "--served-model-name": "model",
        "--dtype": "bfloat16",
        "--max-model-len": LONGEST,
        "--max-num-seqs": "64",
        "--host": "127.0.0.1",
        "--port": os.environ["PEER_PORT"],
    }
    parts = [part for option in options.items() for part in option]
    os.execl(sys.executable, sys.executable, "-m", MODULE, *parts, "--no-enable-log-requests")
