#!/usr/bin/env bash
# All that only a GPU can tell: the kernels' speed and bits, and what sampling costs a training step. Results go beside
# this file; that of the tests is the exit status.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

measure() {
  "$python" -m experiments.benchmark "$1" --turns=20 --output="benchmarks/$2.json" "${@:3}"
}
measure kernel kernel_gpu
measure step step_llama2_134m_gpu --config=configs/llama2.py:size=134m --config.batch_size=32 \
  --config.microbatches=1 --vocab_size=32000
measure step step_llama2_1b_gpu --config=configs/llama2.py:size=1b --config.batch_size=16 \
  --config.microbatches=1 --vocab_size=32000
measure step step_gpt2_124m_gpu --config=configs/gpt2.py:size=124m --config.batch_size=16 \
  --config.microbatches=1 --vocab_size=50257

JAX_PLATFORMS=cuda "$python" -m pytest tests/kernels_pallas/test_sampling_kernels.py -k 'not interpret'
