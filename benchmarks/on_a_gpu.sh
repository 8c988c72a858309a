#!/usr/bin/env bash
# All that only a GPU can tell: the kernels' bits and speed, and what sampling costs a training step.
#
#     bash benchmarks/on_a_gpu.sh [--dry_run] [STAGE...]
#
# The stages, in this order unless some are named: bits, kernels, llama2_1b, llama2_134m, gpt2_124m, llama2_1b_fp8 (GEMMs
# on FP8 units). Each has a time limit.
# One that fails stops no other; the exit status is 0 if all ran and passed. Results are written as they come, to $OUT (this
# folder, unless set), by $PYTHON (.venv/bin/python). --dry_run does the same at small sizes on a CPU, within two minutes;
# there $OUT is a temporary folder unless set, and a stage for which a package is missing is no failure.
#
# bits and kernels need the packages jax, numpy, absl-py, pytest, flax and optax alone, the others ml_collections too;
# without qwix, steps say that it is not installed.
set -uo pipefail
start=$PWD
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
dry_run=
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
out=${OUT:-${dry_run:+$(mktemp -d)}}
out=${out:-$PWD/benchmarks}
[[ $out = /* ]] || out=$start/$out
stages=${*:-bits kernels llama2_1b llama2_134m gpt2_124m llama2_1b_fp8}

"$python" - $stages <<'PYTHON' || exit 2
import importlib.util, sys

kernels = {name: name for name in ('jax', 'numpy', 'pytest', 'flax', 'optax')} | {'absl': 'absl-py'}
steps = kernels | {'ml_collections': 'ml_collections'}
needs = {'bits': kernels, 'kernels': kernels}
needs |= dict.fromkeys(('llama2_1b', 'llama2_134m', 'gpt2_124m', 'llama2_1b_fp8'), steps)
if unknown := set(sys.argv[1:]) - set(needs):
    sys.exit(f'error: {", ".join(sorted(unknown))} is no stage; there are {", ".join(needs)}')
missing = {}
for stage in sys.argv[1:]:
    for module, package in needs[stage].items():
        if importlib.util.find_spec(module) is None:
            missing.setdefault(package, []).append(stage)
if not missing:
    print('packages: all there')
else:
    packages, version = ' '.join(missing), '.'.join(map(str, sys.version_info[:2]))
    for_what = '; '.join(f'{package} for {", ".join(stages)}' for package, stages in missing.items())
    print(
        f'missing: {for_what}. With a network, pip install {packages}; without one, elsewhere pip download'
        f' --python-version {version} --only-binary=:all: -d wheels {packages}, and here pip install --no-index'
        ' --find-links wheels ' + packages
    )
PYTHON

status=0
run() {  # seconds, name, command
  local limit=$1 name=$2 started=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@"
  local result=$?
  [ $result -eq 0 ] || status=1
  [ $result -ne 124 ] && [ $result -ne 137 ] || echo "$name took longer than its limit, $limit s"
  echo "== $name: exit status $result, $((SECONDS - started)) s"
}
benchmark() {  # seconds, results, arguments
  run "$1" "$2" "$python" -m experiments.benchmark "${@:3}" --output="$out/$2.json"
}
step() {  # seconds, results, arguments
  if "$python" -c 'import ml_collections' 2>/dev/null; then
    benchmark "$1" "$2" step "${@:3}" --config.microbatches=1
  else
    echo "== $2: not run: ml_collections is missing"
    [ $dry_run ] || status=1
  fi
}
tests=tests/kernels_pallas/test_sampling_kernels.py
llama2=configs/llama2.py gpt2=configs/gpt2.py fp8=method=fqt,recipe=fp8_rowwise,arithmetic=hardware
mkdir -p "$out"
for stage in $stages; do
  if [ $dry_run ]; then
    export JAX_PLATFORMS=cpu
    case $stage in
      bits) run 60 bits "$python" -m pytest -q $tests -k 'triton_interpret and test_backward' ;;
      kernels) benchmark 60 kernel_dry_run kernel --turns=2 --shapes='ragged/wide|^tiny/mlp/gate' ;;
      llama2_1b_fp8)
        step 60 "step_${stage}_dry_run" --turns=2 --config=$llama2:smoke,$fp8 --methods=bf16,fqt ;;
      *) step 60 "step_${stage}_dry_run" --turns=2 --config="configs/${stage%%_*}.py:smoke" --methods=bf16,gaussws ;;
    esac
    continue
  fi
  case $stage in
    bits) GAUSSQ_OPTIMIZED_TESTS=1 JAX_PLATFORMS=cuda run 120 bits "$python" -m pytest -q $tests -k 'not interpret' ;;
    kernels) benchmark 240 kernel_gpu kernel --turns=20 --shapes='^llama2-1b/mlp/gate|^tiny/mlp/gate|ragged/gpt2' ;;
    llama2_1b)
      step 180 step_llama2_1b_gpu --turns=20 --config=$llama2:size=1b --config.batch_size=16 --vocab_size=32000 ;;
    llama2_134m)
      step 180 step_llama2_134m_gpu --turns=20 --config=$llama2:size=134m --config.batch_size=32 --vocab_size=32000 ;;
    gpt2_124m)
      step 180 step_gpt2_124m_gpu --turns=20 --config=$gpt2:size=124m --config.batch_size=16 --vocab_size=50257 ;;
    llama2_1b_fp8)
      XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false" step 180 step_llama2_1b_fp8_gpu --turns=20 \
        --config=$llama2:size=1b,$fp8 --config.batch_size=16 --vocab_size=32000 --methods=bf16,fqt ;;
  esac
done
echo "results: $out"
exit $status
