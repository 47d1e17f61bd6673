#!/usr/bin/env bash
# On a CUDA machine, at any folder: the kernels' tests on the GPU, then their benchmark.
# Needs a python with torch, triton, pytest and hypothesis; results go to $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" -c 'import torch, triton; print(torch.__version__, triton.__version__, torch.cuda.get_device_name())'
# Apart from the other tests: without their fixtures, which need timm and the test extra.
"$python" -m pytest -q --noconftest -p no:cacheprovider -p no:randomly -o filterwarnings= -o addopts= -m "not slow" \
  tests/test_kernels_kron_triton.py | tee "$out/kernels-tests.txt"
"$python" benchmarks/kernels.py --device cuda --rounds 30 --out "$out" | tee "$out/kernels.txt"
# Templates of a DeiT-Ti in pieces that end by themselves: call again with the same $OUT to go on.
if [[ -n "${DATA:-}" ]]; then
  timeout --signal=INT "${SECONDS_A_PIECE:-500}" \
    "$python" -m weightinit train-templates --preset cifar10-w192 --data "$DATA" \
    --out "$out/cifar10-w192" --cache-dir "$out/cache" --resume --mixed-precision bf16 \
    --workers 14 || test $? = 124
  # What may replace the default templates, beside them on photos.
  timeout --signal=INT "${SECONDS_A_PIECE:-500}" \
    "$python" -m weightinit train-templates --preset cifar10-w96 --data "$DATA" \
    --out "$out/cifar10-w96" --cache-dir "$out/cache" --fp16 --resume --workers 14 || test $? = 124
  if [[ -f "$out/cifar10-w96/model.safetensors" ]]; then
    "$python" benchmarks/default_bundle.py --bundle cifar10-w64 mixed-w96 "$out/cifar10-w96" \
      --work "$out/photos" --results "$out"
  fi
  # The tables of docs/benchmarks.md at DeiT widths, in pieces too.
  timeout --signal=INT "${SECONDS_A_PIECE:-500}" \
    "$python" benchmarks/learngene.py --preset small --data "$DATA" --workers 14 \
    --work "$out/learngene" --cache-dir "$out/cache" --results "$out" || test $? = 124
  # Hypernetworks at 33 times the steps of two cores, and wider.
  timeout --signal=INT "${SECONDS_A_PIECE:-500}" \
    "$python" benchmarks/hypernet_quality.py --preset small --jobs 1 --work "$out/learngene" \
    --cache-dir "$out/cache" --results "$out" || test $? = 124
fi
# WeiT in four domains: WEIT= names the suites, and the folder under $out lets a second call go on.
if [[ -n "${WEIT:-}" ]]; then
  # shellcheck disable=SC2086
  timeout --signal=INT "${SECONDS_A_PIECE:-500}" "$python" benchmarks/weit.py --suite $WEIT \
    --device cuda --jobs 12 --work "$out/weit" --cache-dir "$out/cache" --results "$out" \
    || test $? = 124
  # shellcheck disable=SC2086
  "$python" benchmarks/weit.py --suite $WEIT --record --device cuda --work "$out/weit" --results "$out"
fi
# Starts from a really pretrained network, where $WEIGHTINIT_ANCESTORS and $WEIGHTINIT_DATA have it.
if [[ -n "${WEIGHTINIT_ANCESTORS:-}" ]]; then
  timeout --signal=INT "${SECONDS_A_PIECE:-500}" "$python" benchmarks/real.py --suite probe finetune \
    --device cuda --work "$out/real" --cache-dir "$out/cache" --results "$out" || test $? = 124
fi
# Graph, prediction and training step of hypernetworks, bf16.
"$python" benchmarks/hypernet.py --device cuda --out "$out" | tee "$out/hypernet.txt"
