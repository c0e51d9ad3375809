"""From a model's name to a Kubernetes Deployment, from Python."""

import json

from aim_engine import generate_kubernetes_config, select_optimal_recipe

recipe = select_optimal_recipe("meta-llama/Llama-3.3-70B-Instruct", "2xMI300X")
assert recipe is not None
print(json.dumps(generate_kubernetes_config(recipe), indent=2))
