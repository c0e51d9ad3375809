#!/bin/sh
# Written by aim-engine X.Y.Z for docker.
# Model:  test/small, 1.1 GiB of weights
# Recipe: 1x tp2 bf16 kv=auto seqs=256 tokens=8192 on 2 x W7900, vllm 0.32.0
# Plan:   throughput at 64 requests of 1024 + 512 tokens; sha256 ...
#
# Tokens are read from small.secret.env beside this script, never from the command line.
set -eu
here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
secrets="$here"/small.secret.env
set --
[ -d '/models/small, '"'"'new'"'"'' ] || { echo "the model folder is missing" >&2; exit 1; }
if [ -f "$secrets" ]; then set -- "$@" --env-file "$secrets"; fi
# By number: an image need not have a group called render.
for device in /dev/dri/renderD128 /dev/dri/renderD129 /dev/kfd; do
    if ! [ -e "$device" ]; then
        echo "$device is missing: is the amdgpu driver loaded?" >&2
        exit 1
    fi
    set -- "$@" --group-add "$(stat -c %g "$device")"
done
docker run --detach \
    --name small \
    --restart unless-stopped \
    --stop-timeout 150 \
    --device /dev/kfd \
    --device /dev/dri/renderD128 \
    --device /dev/dri/renderD129 \
    --group-add video \
    --shm-size 16g \
    --cap-drop ALL \
    --cap-add DAC_OVERRIDE \
    --cap-add FOWNER \
    --security-opt no-new-privileges \
    --publish 127.0.0.1:8000:8000 \
    --mount 'type=bind,"source=/models/small, '"'"'new'"'"'",target=/model,readonly' \
    --mount type=volume,source=small-compiled,target=/root/.cache/vllm \
    --env HF_HUB_OFFLINE=1 \
    --health-cmd 'python3 -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" http://127.0.0.1:8000/health' \
    --health-start-period 900s \
    --health-interval 10s \
    --health-timeout 6s \
    --health-retries 6 \
    "$@" \
    vllm/vllm-openai-rocm:v0.32.0 \
    /model \
    --host 0.0.0.0 \
    --port 8000 \
    --served-model-name test/small \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --gpu-memory-utilization 0.92 \
    --tensor-parallel-size 2 \
    --shutdown-timeout 120
