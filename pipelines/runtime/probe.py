"""Probe: does a device compute here? A tiny graph runs on it, in a process of its own.

A crash of a provider stays in there, and neither CUDA's context nor its libraries remain in the caller.

    python -m pipelines.runtime.probe cuda
"""

import subprocess
import sys

import numpy as np

from pipelines.errors import ConfigurationError, SextetError
from pipelines.runtime.providers import Device
from pipelines.runtime.session import InferenceSession
from pipelines.runtime.session_config import SessionConfig
from pipelines.runtime.small_graph import Node, Port, small_graph

LIMIT_S = 180.0  # TensorRT builds an engine


def probe(device: Device) -> None:
    """Raises ConfigurationError, one line that says why `device` does not compute on this machine."""
    command = [sys.executable, "-m", "pipelines.runtime.probe", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"device is {device!r}, but it computes nothing within {LIMIT_S:.0f} s") from None
    if done.returncode == 0:
        return
    if done.returncode == 1 and done.stdout.strip():
        raise ConfigurationError(done.stdout.strip())
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise ConfigurationError(f"device is {device!r}, but onnxruntime crashes on it ({ended}: {last})")


def run(device: Device) -> None:
    """The probe itself, in this process; raises a SextetError."""
    float32 = np.dtype(np.float32)
    double = small_graph([Node("Add", ("x", "x"), ("y",))], [Port("x", float32, 1)], [Port("y", float32, 1)])
    outputs = InferenceSession(double, SessionConfig(device=device)).run({"x": np.asarray([1.0, 2.0], np.float32)})
    if outputs["y"].tolist() != [2.0, 4.0]:
        raise ConfigurationError(f"device is {device!r}, but it computes 1 + 1 as {outputs['y'][0]}")


if __name__ == "__main__":
    try:
        run(sys.argv[1])  # type: ignore[arg-type]
    except SextetError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(1)
