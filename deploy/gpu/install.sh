#!/usr/bin/env bash
# Installs Sextet for GPUs on a machine without a network: the wheels of `make wheels`, beside the machine's own PyTorch.
#
#   deploy/gpu/install.sh WHEELS VENV
#
# PYTHON (python3) has PyTorch for CUDA 13. Nothing is written outside of VENV and the source tree. The last line that it
# prints names what was installed; every failure ends it with a line and another exit code than 0.
set -euo pipefail
if [ $# != 2 ]; then
    echo "install.sh: allowed: install.sh WHEELS VENV" >&2
    exit 2
fi
if compgen -G "$2/lib/python*/site-packages/onnxruntime-*.dist-info" >/dev/null; then
    echo "install.sh: $2 has onnxruntime for CPUs, whose folder onnxruntime-gpu shares; name another environment" >&2
    exit 1
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
joined=$(mktemp -d)
trap 'rm -rf "$joined"' EXIT

"$python" "$root/deploy/gpu/wheels.py" join "$1" "$joined"
"$python" -m venv --without-pip "$2"  # Debian's Python has no pip to put there; the one of $python serves
"$python" "$root/deploy/gpu/borrow.py" "$2"

install=("$python" -m pip --isolated --disable-pip-version-check -q --python "$2/bin/python" install
    --no-index --no-deps --no-compile --root-user-action=ignore)
"${install[@]}" --find-links "$joined" --require-hashes -r "$root/requirements/gpu-proof.lock"
"${install[@]}" --no-build-isolation -e "$root"

"$2/bin/python" - "$2" <<'EOF'
import sys
from importlib.metadata import version

sys.tracebacklimit = 0  # an import that fails is one line
import onnxruntime
import torch

names = ("sextet", "onnxruntime-gpu", "ray", "transformers", "optimum-onnx", "tokenizers", "numpy")
versions = ", ".join(f"{name} {version(name)}" for name in names)
if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
    sys.exit(f"install.sh: onnxruntime {onnxruntime.__version__} of {sys.argv[1]} has no CUDAExecutionProvider")
print(f"installed into {sys.argv[1]}: {versions}, torch {torch.__version__} with CUDA {torch.version.cuda}")
EOF
