"""Take the weights of a finished run into the repository, as float16.

    python starter/adopt.py runs/sentiment starter/sentiment

A LoRA run gives its adapter and new head, any other run the whole checkpoint; metrics.json comes along.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

KEPT = ("config.json", "generation_config.json", "adapter_config.json", "source.spm", "target.spm", "vocab.json")
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")


def adopt(run: Path, starter: Path) -> None:
    is_adapter = (run / "adapter").is_dir()
    source = run / "adapter" if is_adapter else run
    for name in KEPT if is_adapter else KEPT + TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, starter / name)
    for weights in source.glob("*.safetensors"):
        halves = {name: tensor.to(torch.float16) for name, tensor in load_file(weights).items()}
        save_file(halves, starter / weights.name, metadata={"format": "pt"})
    shutil.copyfile(run / "metrics.json", starter / "metrics.json")


if __name__ == "__main__":
    adopt(Path(sys.argv[1]), Path(sys.argv[2]))
