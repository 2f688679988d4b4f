"""infinity-emb with its Optimum engine: a command line and nothing else."""

import os
import sys
from pathlib import Path

OPTIONS = {
    "--model-id": os.environ["PEER_MODEL"],
    "--served-model-name": "classifier",
    "--engine": "optimum",
    "--device": "cpu",
    "--host": "127.0.0.1",
    "--port": os.environ["PEER_PORT"],
}

if __name__ == "__main__":
    program = Path(sys.executable).with_name("infinity_emb")
    os.execl(program, program.name, "v2", *(part for option in OPTIONS.items() for part in option))
