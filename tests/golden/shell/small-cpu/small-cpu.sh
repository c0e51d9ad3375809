#!/bin/sh
# Written by aim-engine X.Y.Z for shell.
# Model:  test/small, 1.1 GiB of weights
# Recipe: 1x tp1 bf16 kv=auto seqs=256 tokens=8192 on the CPU, vllm 0.32.0
# Plan:   throughput at 64 requests of 1024 + 512 tokens; sha256 ...
#
# A hub token is taken from HF_TOKEN or the hub's own login.
set -eu
if ! command -v vllm >/dev/null; then
    echo 'vllm is not on PATH: vllm 0.32.0 is needed' >&2
    exit 127
fi
export VLLM_TARGET_DEVICE=cpu
exec vllm serve \
    test/small \
    --host 127.0.0.1 \
    --port 8000 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --kv-cache-memory-bytes 1073741824
