#!/bin/sh
# Written by aim-engine X.Y.Z for docker.
# Model:  test/small, 1.1 GiB of weights
# Recipe: 1x tp1 bf16 kv=auto seqs=256 tokens=8192 on the CPU, vllm 0.32.0
# Plan:   throughput at 64 requests of 1024 + 512 tokens; sha256 ...
#
# Tokens are read from small-cpu.secret.env beside this script, never from the command line.
set -eu
here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
secrets="$here"/small-cpu.secret.env
set --
mkdir -p -- "$HOME"/.cache/huggingface
if [ -f "$secrets" ]; then set -- "$@" --env-file "$secrets"; fi
docker run --detach \
    --name small-cpu \
    --restart unless-stopped \
    --stop-timeout 150 \
    --shm-size 4g \
    --cap-drop ALL \
    --cap-add DAC_OVERRIDE \
    --cap-add FOWNER \
    --security-opt no-new-privileges \
    --publish 127.0.0.1:8000:8000 \
    --mount 'type=bind,"source='"$HOME"'/.cache/huggingface",target=/root/.cache/huggingface' \
    --mount type=volume,source=small-cpu-compiled,target=/root/.cache/vllm \
    --env HF_HOME=/root/.cache/huggingface \
    --env VLLM_TARGET_DEVICE=cpu \
    --health-cmd 'python3 -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" http://127.0.0.1:8000/health' \
    --health-start-period 900s \
    --health-interval 10s \
    --health-timeout 6s \
    --health-retries 6 \
    "$@" \
    --entrypoint vllm \
    registry.local:5000/vllm-cpu:v0.32.0 \
    serve test/small \
    --host 0.0.0.0 \
    --port 8000 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --kv-cache-memory-bytes 1073741824 \
    --shutdown-timeout 120
