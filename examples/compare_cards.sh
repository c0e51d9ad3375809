#!/bin/sh
# The same model on four kinds of machine, as JSON, reduced to one line each.
set -eu
for gpus in 1xMI300X 1xMI355X 4xMI210 4xW7900; do
    aim-engine plan Qwen/Qwen3-32B --gpus "$gpus" --concurrency 8 --json |
        python3 -c "import json,sys; c=json.load(sys.stdin)['chosen']; print('$gpus', c['recipe']['parallelism']['tp'], round(c['estimate']['output_tok_s']['value']))"
done
