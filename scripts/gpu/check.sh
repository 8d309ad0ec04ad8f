#!/usr/bin/env bash
# For a person with an NVIDIA GPU or a Jetson: builds TensorRT engines of the bundled model, holds
# them to ONNX Runtime on the CPU, times them with and without CUDA graphs, and keeps the figures in
# docs/results/gpu-<name>.json. Takes some minutes, most of them for the builds.
#
#   scripts/gpu/check.sh [--name robot-orin] [--model small] [--frames 2000]
#
# Needs a driver, TensorRT, numpy, OpenCV, PyYAML and onnxruntime in the Python it uses: $PYTHON, or
# python3 of the environment that is active. The project's own tests run this script against
# stand-ins for CUDA and TensorRT only: figures exist for the GPUs that have a file in docs/results.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

"$python" -m depth_node.cli doctor || true # what is missing for the CPU does not matter here
exec "$python" "$root/scripts/gpu/check.py" "$@"
