"""Shared libraries made for a test with the C compiler, and programs that find them as a real process would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) to make libraries with")
DRIVER = """
static const char *errors[] = {"ok", "no CUDA-capable device is detected"};
int cuDriverGetVersion(int *version) { *version = CUDA; return 0; }
int cuInit(unsigned flags) { return GPUS ? 0 : 1; }
int cuDeviceGetCount(int *count) { *count = GPUS; return 0; }
int cuGetErrorString(int error, const char **text) { *text = errors[error]; return 0; }
"""
NVML = """
#include <stdio.h>
struct memory { unsigned long long total, free, used; };
static int gpus[GPUS + 1];
int nvmlInit_v2(void) { return RUNS ? 0 : 9; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { return "Driver Not Loaded"; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) { snprintf(version, length, "580.65.06"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = CUDA; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &gpus[index]; return 0; }
int nvmlDeviceGetName(int *device, char *name, unsigned length) {
    snprintf(name, length, "NVIDIA H200 %d", (int)(device - gpus)); return 0; }
int nvmlDeviceGetCudaComputeCapability(int *device, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetMemoryInfo(int *device, struct memory *memory) {
    if (device - gpus == 1) return 3;
    memory->total = 150754820096ull; memory->free = 150000000000ull; memory->used = 754820096ull; return 0; }
"""


def library(file: Path, source: str = "", needs: tuple[Path, ...] = (), **macros: int) -> Path:
    """A shared library of its file's name that needs others by their sonames."""
    file.parent.mkdir(parents=True, exist_ok=True)
    code = file.with_suffix(".c")
    code.write_text(source or f"int {file.name.split('.')[0]}_there;", encoding="utf-8")
    defined = [f"-D{name}={value}" for name, value in macros.items()]
    linked = ["-Wl,--no-as-needed,--allow-shlib-undefined", *map(str, needs)]
    command = ["cc", "-shared", "-fPIC", "-o", str(file), f"-Wl,-soname,{file.name}", *defined, str(code), *linked]
    subprocess.run(command, check=True, capture_output=True)
    return file


def driver(folder: Path, *, cuda: int = 13000, gpus: int = 1, runs: bool = True) -> Path:
    """The two libraries of an NVIDIA driver. The second GPU does not tell its memory."""
    library(folder / "libcuda.so.1", DRIVER, CUDA=cuda, GPUS=gpus)
    library(folder / "libnvidia-ml.so.1", NVML, CUDA=cuda, GPUS=gpus, RUNS=int(runs))
    return folder


def run(program: str, *, libraries: Path | None = None, packages: Path | None = None, **environment: str) -> str:
    """What a Python program prints whose dynamic loader looks into `libraries`, and whose imports into `packages`."""
    paths = os.pathsep.join(str(path) for path in (packages, ROOT) if path is not None)
    given = {"PYTHONPATH": paths, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | given | environment
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()
