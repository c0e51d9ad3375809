#!/bin/sh
# Written by aim-engine X.Y.Z for docker.
# Model:  Qwen/Qwen3-32B, 61.0 GiB of weights
# Recipe: 1x tp8 bf16 kv=auto seqs=256 tokens=8192 on 8 x MI300X, vllm 0.32.0
# Plan:   throughput at 64 requests of 1024 + 512 tokens; sha256 ...
#
# Tokens are read from qwen3-32b.secret.env beside this script, never from the command line.
# The plan does not know the host's device files, so the container is given all of /dev/dri.
set -eu
here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
secrets="$here"/qwen3-32b.secret.env
set --
mkdir -p -- "$HOME"/.cache/huggingface
if [ -f "$secrets" ]; then set -- "$@" --env-file "$secrets"; fi
# By number: an image need not have a group called render.
for device in /dev/dri/renderD* /dev/kfd; do
    if ! [ -e "$device" ]; then
        echo "$device is missing: is the amdgpu driver loaded?" >&2
        exit 1
    fi
    set -- "$@" --group-add "$(stat -c %g "$device")"
done
docker run --detach \
    --name qwen3-32b \
    --restart unless-stopped \
    --stop-timeout 150 \
    --device /dev/kfd \
    --device /dev/dri \
    --group-add video \
    --shm-size 16g \
    --cap-drop ALL \
    --cap-add DAC_OVERRIDE \
    --cap-add FOWNER \
    --security-opt no-new-privileges \
    --publish 127.0.0.1:8000:8000 \
    --mount 'type=bind,"source='"$HOME"'/.cache/huggingface",target=/root/.cache/huggingface' \
    --mount type=volume,source=qwen3-32b-compiled,target=/root/.cache/vllm \
    --env HF_HOME=/root/.cache/huggingface \
    --env VLLM_ROCM_USE_AITER=1 \
    --health-cmd 'python3 -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" http://127.0.0.1:8000/health' \
    --health-start-period 900s \
    --health-interval 10s \
    --health-timeout 6s \
    --health-retries 6 \
    "$@" \
    vllm/vllm-openai-rocm:v0.32.0 \
    Qwen/Qwen3-32B \
    --host 0.0.0.0 \
    --port 8000 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --gpu-memory-utilization 0.92 \
    --tensor-parallel-size 8 \
    --attention-backend ROCM_AITER_FA \
    --shutdown-timeout 120
