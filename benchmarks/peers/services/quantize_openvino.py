"""OpenVINO's int8 model of an ONNX graph: NNCF, calibrated on rows of the load, as its documentation does for encoders.

quantize_openvino.py GRAPH OUTPUT < rows        a line of JSON: token ids, one list for each row
"""

import json
import sys
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino


def main(graph: Path, output: Path) -> None:
    model = openvino.convert_model(graph)
    names = {one.get_any_name() for one in model.inputs}
    rows = json.load(sys.stdin)
    calibration = nncf.Dataset(rows, lambda ids: {name: array for name, array in _feeds(ids).items() if name in names})
    quantized = nncf.quantize(
        model, calibration, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows), fast_bias_correction=True
    )
    openvino.save_model(quantized, output)


def _feeds(ids: list[int]) -> dict[str, Any]:
    row = np.array([ids])  # (1, tokens) int64
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
