"""infinity-emb with its Optimum engine, which is one command line.

It detects a classifier by the labels in config.json, which transformers leaves out where they have default names. The
service therefore links the files of the artifact into a folder with a config.json that has labels. Its warm-up is off,
because that sends a text of 2,050 tokens without truncation to a model of 512 positions.
"""

import json
import os
import sys
from pathlib import Path

LABELS = {"0": "LABEL_0", "1": "LABEL_1"}


def served_folder(source: Path) -> Path:
    folder = Path("model").resolve()
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = {"id2label": LABELS} | json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    options = {
        "--model-id": str(served_folder(Path(os.environ["PEER_MODEL"]))),
        "--served-model-name": "classifier",
        "--engine": "optimum",
        "--batch-size": os.environ["PEER_BATCH_SIZE"],
        "--device": "cpu",
        "--host": "127.0.0.1",
        "--port": os.environ["PEER_PORT"],
    }
    program = Path(sys.executable).with_name("infinity_emb")
    os.execl(program, program.name, "v2", "--no-model-warmup", *(part for option in options.items() for part in option))
