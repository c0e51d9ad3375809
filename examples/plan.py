"""Choose a configuration and read the plan, from Python."""

from aim_engine import RecipeSelector, select_optimal_recipe

recipe = select_optimal_recipe("Qwen/Qwen3-32B", "8xMI300X")
assert recipe is not None
print(recipe.key)

plan = RecipeSelector().plan("openai/gpt-oss-120b", gpus="2xMI300X", objective="latency")
assert plan.chosen is not None
for step in plan.steps:
    print(f"{step.name}: {step.summary}")
print(f"{plan.chosen.estimate.tpot_ms.value:.1f} ms per token, {plan.chosen.estimate.tpot_ms.basis}")
