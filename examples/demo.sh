#!/bin/sh
# The main job on whatever this machine has: detect, plan, write out, check, start a real engine, ask it, measure, stop.
set -eu

MODEL=HuggingFaceTB/SmolLM2-135M-Instruct
NAME=demo
PORT=${PORT:-18470}
FOLDER=$(mktemp -d)

finish() {
    status=$?
    trap - EXIT INT TERM
    aim-engine down "$NAME" --yes >/dev/null 2>&1 || true
    rm -rf "$FOLDER"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() {
    printf '\n$'
    for word in "$@"; do
        case $word in *" "*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

say aim-engine gpus
say aim-engine plan "$MODEL" --concurrency 1 -o "$FOLDER/plan.json"
say aim-engine render "$FOLDER/plan.json" --target shell -o "$FOLDER/files" --port "$PORT"
say aim-engine validate "$FOLDER/plan.json" "$FOLDER"/files/*
say aim-engine up "$MODEL" --concurrency 1 --name "$NAME" --port "$PORT" --ask "What is the capital of France?"
say aim-engine status
say aim-engine down "$NAME" --yes
