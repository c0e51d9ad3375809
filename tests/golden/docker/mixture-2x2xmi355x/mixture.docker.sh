#!/bin/sh
# Written by aim-engine X.Y.Z for docker.
# Model:  test/mixture, 56.9 GiB of weights
# Recipe: 2x tp2 ep bf16 kv=auto seqs=256 tokens=8192 on 4 x MI355X, vllm 0.32.0
# Plan:   throughput at 64 requests of 1024 + 512 tokens; sha256 ...
#
# Tokens are read from mixture.secret.env beside this script, never from the command line.
# Starts 2 replicas, on ports 9000 to 9001.
# The plan does not know the host's device files, so the container is given all of /dev/dri.
set -eu
here=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
secrets="$here"/mixture.secret.env
set --
mkdir -p -- '/srv/hub cache'
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
    --name mixture-0 \
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
    --publish 0.0.0.0:9000:8000 \
    --mount 'type=bind,source=/srv/hub cache,target=/root/.cache/huggingface' \
    --mount type=volume,source=mixture-0-compiled,target=/root/.cache/vllm \
    --env HF_HOME=/root/.cache/huggingface \
    --env HIP_VISIBLE_DEVICES=0,1 \
    --health-cmd 'python3 -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" http://127.0.0.1:8000/health' \
    --health-start-period 900s \
    --health-interval 10s \
    --health-timeout 6s \
    --health-retries 6 \
    "$@" \
    vllm/vllm-openai-rocm:v0.32.0 \
    test/mixture \
    --host 0.0.0.0 \
    --port 8000 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --gpu-memory-utilization 0.92 \
    --tensor-parallel-size 2 \
    --enable-expert-parallel \
    --distributed-executor-backend mp \
    --shutdown-timeout 120
docker run --detach \
    --name mixture-1 \
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
    --publish 0.0.0.0:9001:8000 \
    --mount 'type=bind,source=/srv/hub cache,target=/root/.cache/huggingface' \
    --mount type=volume,source=mixture-1-compiled,target=/root/.cache/vllm \
    --env HF_HOME=/root/.cache/huggingface \
    --env HIP_VISIBLE_DEVICES=2,3 \
    --health-cmd 'python3 -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)" http://127.0.0.1:8000/health' \
    --health-start-period 900s \
    --health-interval 10s \
    --health-timeout 6s \
    --health-retries 6 \
    "$@" \
    vllm/vllm-openai-rocm:v0.32.0 \
    test/mixture \
    --host 0.0.0.0 \
    --port 8000 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --max-num-seqs 256 \
    --max-num-batched-tokens 8192 \
    --gpu-memory-utilization 0.92 \
    --tensor-parallel-size 2 \
    --enable-expert-parallel \
    --distributed-executor-backend mp \
    --shutdown-timeout 120
