#!/bin/sh
# Written by aim-engine X.Y.Z for shell.
# Model:  test/mixture, 56.9 GiB of weights
# Recipe: 2x tp2 ep bf16 kv=auto seqs=256 tokens=8192 on 4 x MI355X, vllm 0.32.0
# Plan:   throughput at 64 requests of 1024 + 512 tokens; sha256 ...
#
# A hub token is taken from HF_TOKEN or the hub's own login.
# Starts 2 replicas, on ports 9000 to 9001; one that ends stops all.
set -eu
if ! command -v vllm >/dev/null; then
    echo 'vllm is not on PATH: vllm 0.32.0 is needed' >&2
    exit 127
fi
pids=''
stop() {
    trap - EXIT INT TERM
    for pid in $pids; do kill -TERM "$pid" 2>/dev/null || :; done
    wait
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
(
export HF_HOME='/srv/hub cache'
export HIP_VISIBLE_DEVICES=0,1
exec vllm serve \
    test/mixture \
    --host 0.0.0.0 \
    --port 9000 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --gpu-memory-utilization 0.92 \
    --tensor-parallel-size 2 \
    --enable-expert-parallel \
    --distributed-executor-backend mp
) &
pids="$pids $!"
(
export HF_HOME='/srv/hub cache'
export HIP_VISIBLE_DEVICES=2,3
exec vllm serve \
    test/mixture \
    --host 0.0.0.0 \
    --port 9001 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --gpu-memory-utilization 0.92 \
    --tensor-parallel-size 2 \
    --enable-expert-parallel \
    --distributed-executor-backend mp
) &
pids="$pids $!"
while :; do
    for pid in $pids; do
        kill -0 "$pid" 2>/dev/null || { wait "$pid" || exit "$?"; exit 0; }
    done
    sleep 2 & wait $!
done
