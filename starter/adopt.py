"""Take the weights of a finished run into the repository, as float16.

    python starter/adopt.py runs/sentiment starter/sentiment

A LoRA run gives its adapter and new head, any other run the whole checkpoint; metrics.json comes along.
"""

import json
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
    if is_adapter:  # the base by the name that everyone has, not by its path on the machine of the training
        config = json.loads((starter / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = "starter:encoder"
        (starter / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(run / "metrics.json", starter / "metrics.json")


if __name__ == "__main__":
    adopt(Path(sys.argv[1]), Path(sys.argv[2]))
