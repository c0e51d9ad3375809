"""AIM Engine: choose, prove, write out, start and watch the best serving configuration of a model on AMD GPUs.

The names below are the public Python interface; each is imported from its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aim_engine._version import __version__

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager
    from aim_engine.hardware.detect import GPUDetector
    from aim_engine.performance import PerformanceMonitor
    from aim_engine.planner.plan import Plan
    from aim_engine.planner.validate import ConfigurationValidator
    from aim_engine.recipe.database import RecipeDatabase
    from aim_engine.recipe.heuristics import calculate_optimal_gpu_count, select_optimal_precision
    from aim_engine.recipe.recipe import Recipe
    from aim_engine.render.generator import (
        ConfigurationGenerator,
        generate_docker_config,
        generate_kubernetes_config,
        generate_vllm_config,
    )
    from aim_engine.selector import RecipeSelector, select_fallback_recipe, select_optimal_recipe

_EXPORTS = {
    "ConfigurationGenerator": "render.generator",
    "ConfigurationValidator": "planner.validate",
    "GPUDetector": "hardware.detect",
    "ModelCacheManager": "cache.manager",
    "PerformanceMonitor": "performance",
    "Plan": "planner.plan",
    "Recipe": "recipe.recipe",
    "RecipeDatabase": "recipe.database",
    "RecipeSelector": "selector",
    "calculate_optimal_gpu_count": "recipe.heuristics",
    "generate_docker_config": "render.generator",
    "generate_kubernetes_config": "render.generator",
    "generate_vllm_config": "render.generator",
    "select_fallback_recipe": "selector",
    "select_optimal_precision": "recipe.heuristics",
    "select_optimal_recipe": "selector",
}

__all__ = [
    "ConfigurationGenerator",
    "ConfigurationValidator",
    "GPUDetector",
    "ModelCacheManager",
    "PerformanceMonitor",
    "Plan",
    "Recipe",
    "RecipeDatabase",
    "RecipeSelector",
    "__version__",
    "calculate_optimal_gpu_count",
    "generate_docker_config",
    "generate_kubernetes_config",
    "generate_vllm_config",
    "select_fallback_recipe",
    "select_optimal_precision",
    "select_optimal_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'aim_engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"aim_engine.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
