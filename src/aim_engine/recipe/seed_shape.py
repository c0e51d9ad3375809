"""Reading the recipe shape of the product's first specification.

    {huggingface_id, precision, gpu_count, config: {args: {...}, env_vars: {...}}, resources: {requests, limits}}

`args` holds engine arguments by name, with `_` or `-`. What has a field of its own goes there, the rest stays an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aim_engine.errors import InvalidInput
from aim_engine.hardware.quantity import quantity
from aim_engine.recipe.recipe import Parallelism, Precision, Recipe, Resources
from aim_engine.units import GIB

PRECISIONS: dict[str, Precision] = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
    "mxfp4": "mxfp4",
    "mxfp6": "mxfp6",
    "mxfp8": "mxfp8",
    "nvfp4": "nvfp4",
}
UNNAMED_GPU = "any"
"""The shape names a number of GPUs but no card."""
DEFAULT_SEQS = 256
"""What vLLM takes for max_num_seqs on the smallest devices, and safe on larger ones; the shape leaves it out."""
_KNOWN_ARGS = {
    "model",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "kv_cache_dtype",
    "attention_backend",
    "trust_remote_code",
    "host",
    "port",
}


def is_seed_shape(document: object) -> bool:
    """`document` looks like a recipe of that shape, complete or not."""
    return isinstance(document, Mapping) and "huggingface_id" in document and "schema" not in document


def from_seed(
    document: Mapping[str, Any], *, engine: str = "vllm", engine_version: str, gpu: str | None = None
) -> Recipe:
    """`document` as a recipe for one replica on `gpu_count` devices. Raises: InvalidInput naming the key."""
    config = _mapping(document, "config", default={})
    args = {key.lstrip("-").replace("-", "_"): value for key, value in _mapping(config, "args", "config.").items()}
    env = {str(key): _text(value) for key, value in _mapping(config, "env_vars", "config.", default={}).items()}
    gpu_count = _whole(document, "gpu_count", minimum=0)
    pp, dp = _arg_whole(args, "pipeline_parallel_size", 1), _arg_whole(args, "data_parallel_size", 1)
    tp = _arg_whole(args, "tensor_parallel_size", max(1, gpu_count // (pp * dp)))
    parallelism = Parallelism(tp=tp, pp=pp, dp=dp, ep=bool(args.get("enable_expert_parallel", False)))
    if gpu_count not in (0, parallelism.world_size):
        raise InvalidInput(
            f"gpu_count {gpu_count} and {parallelism.describe()} disagree",
            why=f"one replica of that takes {parallelism.world_size} GPUs",
        )
    return Recipe(
        model_id=_required_text(document, "huggingface_id"),
        gpu=gpu or str(document.get("gpu") or document.get("hardware") or ("cpu" if not gpu_count else UNNAMED_GPU)),
        gpu_count=gpu_count,
        engine=engine,
        engine_version=engine_version,
        parallelism=parallelism,
        precision=_precision(document),
        kv_cache_dtype=str(args.get("kv_cache_dtype", "auto")),
        attention_backend=args.get("attention_backend"),
        max_model_len=_arg_whole(args, "max_model_len"),
        max_num_seqs=_arg_whole(args, "max_num_seqs", DEFAULT_SEQS),
        max_num_batched_tokens=_arg_whole(args, "max_num_batched_tokens"),
        gpu_memory_utilization=_share(args),
        trust_remote_code=args.get("trust_remote_code") is True,
        extra_args=tuple(_extra(args)),
        env=env,
        resources=_resources(document, gpu_count),
        provenance="curated",
        provenance_note="read from the first specification's recipe shape",
    )


def _resources(document: Mapping[str, Any], gpu_count: int) -> Resources:
    resources = _mapping(document, "resources", default={})
    limits = _mapping(resources, "limits", "resources.", default={})
    requests = _mapping(resources, "requests", "resources.", default={})
    for amounts in (limits, requests):
        for key in ("memory", "cpu"):
            _amount(amounts, key)
    memory, cpu = _amount({**requests, **limits}, "memory"), _amount({**limits, **requests}, "cpu")
    shm = (16 if gpu_count > 1 else 4) * GIB
    return Resources(
        cpu_cores=max(1, int(cpu)) if cpu is not None else max(1, 8 * gpu_count),
        memory_bytes=int(memory) if memory is not None else shm + (16 * max(1, gpu_count) + 8) * GIB,
        shm_bytes=shm,
        gpus=gpu_count,
    )


def _amount(values: Mapping[str, Any], key: str) -> Decimal | None:
    if key not in values:
        return None
    found = quantity(str(values[key]))
    if found is None:
        hint = "GB is none, G and Gi are" if str(values[key]).endswith(("B", "b")) else None
        raise InvalidInput(f"resources {key} '{values[key]}' is not a quantity", why="use for example 64Gi", hint=hint)
    return found


def _precision(document: Mapping[str, Any]) -> Precision:
    name = str(document.get("precision", "")).lower()
    if name not in PRECISIONS:
        raise InvalidInput(
            f"precision '{document.get('precision')}' is not known",
            hint=f"one of {', '.join(sorted(set(PRECISIONS.values())))}",
        )
    return PRECISIONS[name]


def _share(args: Mapping[str, Any]) -> float:
    value = args.get("gpu_memory_utilization", 0.9)
    try:
        return float(value)
    except (TypeError, ValueError) as err:
        raise InvalidInput(f"config.args.gpu_memory_utilization '{value}' is not a number") from err


def _extra(args: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key in sorted(set(args) - _KNOWN_ARGS):
        flag, value = "--" + key.replace("_", "-"), args[key]
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, (list, tuple)):
            words += [flag, *(_text(item) for item in value)]
        elif value is not None:
            words += [flag, _text(value)]
    return words


def _text(value: Any) -> str:
    """A value as an engine reads it from a command line or the environment."""
    if isinstance(value, Mapping):
        import json

        return json.dumps(value, sort_keys=True)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mapping(
    document: Mapping[str, Any], key: str, path: str = "", default: dict[str, Any] | None = None
) -> Mapping[str, Any]:
    value = document.get(key, default)
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f"the recipe has no mapping {path}{key}", why=f"found {value!r}" if value is not None else None
        )
    return value


def _required_text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"the recipe's {key} is {value!r}, not text")
    return value


def _whole(document: Mapping[str, Any], key: str, *, minimum: int) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidInput(f"the recipe's {key} is {value!r}, not a whole number of at least {minimum}")
    return value


def _arg_whole(args: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = args.get(key, default)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"the recipe's config.args.{key} is {value!r}, not a whole number of at least 1")
    return value
