"""MLServer's Hugging Face runtime with Optimum on ONNX Runtime and its adaptive batching: two settings files."""

import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "host": "127.0.0.1",
    "http_port": int(os.environ["PEER_PORT"]),
    "grpc_port": int(os.environ["PEER_PORT"]) + 1,
    "metrics_port": int(os.environ["PEER_PORT"]) + 2,
    "parallel_workers": 1,
}
MODEL_SETTINGS = {
    "name": "classifier",
    "implementation": "mlserver_huggingface.HuggingFaceRuntime",
    "max_batch_size": int(os.environ["PEER_BATCH_SIZE"]),
    "max_batch_time": 0.01,
    "parameters": {
        "extra": {
            "task": os.environ["PEER_TASK"],
            "pretrained_model": os.environ["PEER_MODEL"],
            "optimum_model": True,
            "framework": "pt",
        }
    },
}

if __name__ == "__main__":
    Path("settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    Path("model-settings.json").write_text(json.dumps(MODEL_SETTINGS), encoding="utf-8")
    os.environ["USE_TF"] = "0"
    program = Path(sys.executable).with_name("mlserver")
    os.execl(program, program.name, "start", ".")
