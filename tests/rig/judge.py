"""Asks a real vLLM (the CPU build) what its ROCm side says to a `vllm serve` command, with no GPU.

Run with the engine venv's python. One JSON object a line on stdin, one on stdout, in order:
  in : {"id": any, "argv": ["serve", "DIR", "--dtype", ...], "env": {"VLLM_...": "1"},
        "gfx": "gfx942", "memory_bytes": 206158430208, "gpus": 8, "aiter": true, "attention": true}
  out: {"id": any, "parse": "ok" | "error", "parse_error": str, "config": "ok" | "error" | "skipped", "config_error": str,
        "values": {...}, "attention_backend": str, "attention_error": str, "warnings": [...], "seconds": float}

Processes: main (imports torch, transformers, ... once) -> fork, one per (gfx, aiter, env): imports vLLM with that GPU
and environment -> fork, one per request: its own caches, memory size, GPU count and errors. Nothing is kept between requests.
"""
import io
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BASE_ENV = {
    "VLLM_TARGET_DEVICE": "rocm", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_COLOR": "0",
}


def stand_in_for(top, version):
    """Every module and name of a package that this machine has no fitting build of, enough for `import` to work."""
    import importlib.abc
    import importlib.machinery
    import types

    class Stub(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            value = type(name, (), {"__class_getitem__": classmethod(lambda c, k: c)}) if not name.isupper() else name
            if name == "InterpolationMode":
                import enum

                value = enum.Enum(name, "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")
            setattr(self, name, value)
            return value

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            if name == top or name.startswith(top + "."):
                return importlib.machinery.ModuleSpec(name, self, is_package=True)

        def create_module(self, spec):
            m = Stub(spec.name)
            m.__version__, m.__path__ = version, []
            return m

        def exec_module(self, module):
            pass

    sys.meta_path.insert(0, Finder())
    import importlib.metadata as md

    known = md.version
    md.version = lambda name: version if name == top else known(name)
    table = md.packages_distributions
    md.packages_distributions = lambda: {**table(), top: [top]}


def preload():
    """Heavy third-party modules that do not look at the platform: paid once, shared by all forks."""
    import importlib
    import importlib.metadata as md

    real = md.version
    md.version = lambda name: "0.32.0" if name == "vllm" else real(name)  # no "+cpu": else vLLM sees two platforms
    stand_in_for("torchvision", "0.28.0")
    import torch

    torch.version.hip = "7.0"
    for name in ("torch._dynamo", "torch._inductor", "torch._inductor.lowering", "torch._inductor.standalone_compile", "transformers", "transformers.models.auto.modeling_auto",
                 "transformers.modeling_gguf_pytorch_utils", "transformers.modeling_utils", "openai", "openai.types.responses", "fastapi", "pydantic", "anthropic", "xgrammar", "mistral_common",
                 "compressed_tensors", "cv2", "numba", "openai_harmony"):
        try:
            importlib.import_module(name)
        except Exception as e:  # a missing one costs only time
            print(f"preload {name}: {e!r}", file=sys.stderr)


def visible():
    n = int(os.environ.get("FAKE_AMDSMI_GPUS", "8"))
    v = os.environ.get("HIP_VISIBLE_DEVICES") or os.environ.get("CUDA_VISIBLE_DEVICES")
    return n if not v else len([x for x in v.split(",") if x.strip()])


class Anything:
    """Takes any call, has any attribute; decorates by returning what it is given."""

    def __call__(self, *a, **k):
        return a[0] if len(a) == 1 and callable(a[0]) and not k else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key):
        return self


def pretend_triton():
    """Triton is in every ROCm image; here vLLM's own placeholders for it get the names they lack, so that attention backends import."""
    import vllm.triton_utils as tu

    anything = Anything()

    def missing(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return anything

    for cls in (tu.importing.TritonPlaceholder, tu.importing.TritonLanguagePlaceholder):
        cls.__getattr__ = missing
    tu.HAS_TRITON = tu.importing.HAS_TRITON = True
    for mod in list(sys.modules.values()):
        if getattr(mod, "__name__", "").startswith("vllm.") and mod.__dict__.get("HAS_TRITON") is False:
            mod.HAS_TRITON = True


def become(gfx, aiter, env):
    """In a fresh fork: import vLLM as if this GPU were there. env first: some variables are read while importing."""
    os.environ.update(env)
    os.environ["FAKE_AMDSMI_GFX"] = gfx
    sys.path.insert(0, os.path.join(HERE, "fake"))
    if aiter:  # an empty package: vLLM looks only whether AITER is installed
        sys.path.insert(0, os.path.join(HERE, "aiter_on"))
    import torch

    torch.cuda._is_compiled = lambda: True
    torch.cuda._device_count_amdsmi = visible
    torch.cuda.device_count = visible
    torch.accelerator.device_count = visible
    import types

    import vllm

    # vllm/platforms/rocm.py imports vllm._C, in this wheel the AVX-512 CPU kernels: SIGILL on a CPU without them
    vllm._C = sys.modules["vllm._C"] = types.ModuleType("vllm._C")
    from vllm.platforms import current_platform

    pretend_triton()
    import vllm.model_executor.models.registry as reg
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args  # noqa: F401
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: F401
    import vllm.v1.attention.selector  # noqa: F401

    # vLLM looks at a model's class in a new process (8 s each); here it is done in this one
    def inspect(self):
        return reg._ModelInfo.from_model_cls(self.load_model_cls())

    reg._LazyRegisteredModel.inspect_model_cls = inspect
    assert current_platform.is_rocm(), current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))  # 0.4 s: built once


KEEP = 8  # processes with vLLM imported kept at a time
WARM = set()


def warm(req):
    """Import, before the fork, what a request's model needs: later requests find it (0.9 s becomes 0.1 s)."""
    import contextlib
    import importlib

    with contextlib.suppress(Exception):
        folder = next(a for a in req["argv"] if os.path.isdir(a))
        with open(os.path.join(folder, "config.json")) as f:
            arch = json.load(f)["architectures"][0]
        import vllm.model_executor.models.registry as reg

        if arch not in WARM:
            WARM.add(arch)
            reg.ModelRegistry.models[arch].load_model_cls()
    if not WARM & {"-"}:
        WARM.add("-")
        for name in ("rocm_attn", "triton_attn", "rocm_aiter_unified_attn", "turboquant_attn", "mla.triton_mla"):
            with contextlib.suppress(Exception):
                importlib.import_module("vllm.v1.attention.backends." + name)
        for name in ("fp8", "modelopt", "quark.quark", "compressed_tensors.compressed_tensors", "mxfp4"):
            with contextlib.suppress(Exception):
                importlib.import_module("vllm.model_executor.layers.quantization." + name)


def short(x, n=1500):
    return str(x)[:n]


def judge(parser, req):
    import contextlib
    import logging

    t = time.time()
    out = {"id": req.get("id"), "config": "skipped"}
    records = []

    class Keep(logging.Handler):
        def emit(self, r):
            records.append((r.levelname, short(r.getMessage(), 400)))

    logging.getLogger("vllm").addHandler(Keep())
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    argv = list(req["argv"])
    if argv[:1] == ["vllm"]:
        argv = argv[1:]
    if argv[:1] == ["serve"]:
        argv = argv[1:]
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
            args = parser.parse_args(argv)
            if getattr(args, "model_tag", None) is not None:
                args.model = args.model_tag
            validate_parsed_serve_args(args)
        out["parse"] = "ok"
    except SystemExit as e:
        return out | {"parse": "error", "parse_error": short([x for x in err.getvalue().splitlines() if x.strip()][-1:] or e), "seconds": round(time.time() - t, 3)}
    except Exception as e:
        return out | {"parse": "error", "parse_error": short(f"{type(e).__name__}: {e}"), "seconds": round(time.time() - t, 3)}
    try:
        cfg = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        out["config"] = "ok"
    except BaseException as e:
        return out | {"config": "error", "config_error": short(f"{type(e).__name__}: {e}"), "warnings": [m for lv, m in records if lv != "INFO"], "seconds": round(time.time() - t, 3)}
    m, s, p, c = cfg.model_config, cfg.scheduler_config, cfg.parallel_config, cfg.cache_config
    attempt = lambda f: _try(f)
    out["values"] = {
        "platform": type(current_platform).__name__,
        "device_name": attempt(current_platform.get_device_name),
        "device_count": attempt(current_platform.device_count),
        "architecture": m.architecture, "dtype": str(m.dtype).replace("torch.", ""), "max_model_len": m.max_model_len,
        "quantization": m.quantization, "quant_config": type(cfg.quant_config).__name__ if cfg.quant_config else None,
        "tensor_parallel_size": p.tensor_parallel_size, "pipeline_parallel_size": p.pipeline_parallel_size,
        "data_parallel_size": p.data_parallel_size, "world_size": p.world_size, "enable_expert_parallel": p.enable_expert_parallel,
        "executor": str(p.distributed_executor_backend), "disable_custom_all_reduce": p.disable_custom_all_reduce,
        "max_num_batched_tokens": s.max_num_batched_tokens, "max_num_seqs": s.max_num_seqs, "async_scheduling": s.async_scheduling,
        "enable_chunked_prefill": s.enable_chunked_prefill, "enable_prefix_caching": c.enable_prefix_caching,
        "block_size": c.block_size, "kv_cache_dtype": c.cache_dtype, "gpu_memory_utilization": c.gpu_memory_utilization,
        "use_mla": m.use_mla, "enforce_eager": m.enforce_eager, "compilation_mode": str(cfg.compilation_config.mode),
        "cudagraph_mode": str(cfg.compilation_config.cudagraph_mode), "max_cudagraph_capture_size": cfg.compilation_config.max_cudagraph_capture_size,
        "cudagraph_sizes": len(cfg.compilation_config.cudagraph_capture_sizes or []),
        "supports_fp8": attempt(current_platform.supports_fp8), "supports_mx": attempt(current_platform.supports_mx), "fp8_fnuz": attempt(current_platform.is_fp8_fnuz),
        "load_format": str(cfg.load_config.load_format), "attention_backend_asked": str(cfg.attention_config.backend),
    }
    if req.get("attention", True):
        try:
            from vllm.config import set_current_vllm_config
            from vllm.v1.attention.selector import get_attn_backend

            hf = m.hf_text_config
            with set_current_vllm_config(cfg):
                b = get_attn_backend(m.get_head_size(), m.dtype, c.cache_dtype, use_mla=m.use_mla, use_sparse=hasattr(hf, "index_topk") and m.use_mla,
                                     has_sink=m.architecture == "GptOssForCausalLM", num_heads=m.get_num_attention_heads(p))
            out["attention_backend"] = b.get_name()
        except BaseException as e:
            out["attention_error"] = short(f"{type(e).__name__}: {e}")
    if req.get("cache_bytes"):
        try:
            out["cache"] = cache_of(cfg, req["cache_bytes"])
        except BaseException as e:
            import traceback

            out["cache_error"] = short(f"{type(e).__name__}: {e} | {traceback.format_exc()[-900:]}", 2500)
    out["warnings"] = [x for lv, x in records if lv != "INFO"]
    out["seconds"] = round(time.time() - t, 3)
    return out


def cache_of(cfg, available):
    """What the engine's own code makes of `available` bytes of cache: the model is built without weights, each of its layers asked for its spec."""
    import torch

    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
    from vllm.v1.core import kv_cache_utils as kv
    from vllm.v1.worker.worker_base import get_current_attn_backends
    from vllm.v1.worker.workspace import init_workspace_manager

    import types

    known = torch._ops._OpNamespace.__getattr__

    def kernel(self, name):  # layers look their kernels up when they are built; none of them will run
        try:
            return known(self, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return Anything()

    class Prefill:  # asks for a package that ROCm images have; prefill keeps no cache
        get_name = classmethod(lambda c: "none")

        def __init__(self, *a, **k):
            pass

        def __getattr__(self, name):
            return Anything()

    class OnMeta(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if kwargs.get("device") is not None:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    torch._ops._OpNamespace.__getattr__ = kernel
    torch.cuda.current_device = lambda: 0
    torch.accelerator.empty_cache = lambda: None
    torch.cuda.get_device_properties = lambda *a: types.SimpleNamespace(multi_processor_count=304, gcnArchName="gfx90a", major=9, minor=0)
    torch.cuda.Stream = torch.cuda.Event = lambda *a, **k: Anything()
    torch.set_default_dtype(cfg.model_config.dtype)
    with set_current_vllm_config(cfg):
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, "gloo")
            parallel_state.initialize_model_parallel(1, 1)
        type(current_platform).get_mla_prefill_backend_cls = classmethod(lambda c, s: Prefill)
        init_workspace_manager(torch.device("cpu"))
        with torch.device("meta"), OnMeta():
            initialize_model(cfg)
        current_platform.update_block_size_for_backend(cfg)
    layers = cfg.compilation_config.static_forward_context
    specs = {}
    for name, layer in layers.items():
        if hasattr(layer, "get_kv_cache_spec"):
            spec = layer.get_kv_cache_spec(cfg)
            if spec is not None:
                specs[name] = spec
    layouts = [layout.name for layout in get_supported_kv_cache_layouts(get_current_attn_backends(cfg))]
    resolve_kv_cache_layout(cfg, [layouts], specs.values())
    made = kv.get_kv_cache_configs(cfg, [specs], [available])[0]
    tokens, concurrency = kv.get_kv_cache_capacity(cfg, made)
    return {
        "layers": len(specs), "kinds": sorted({type(s).__name__ for s in specs.values()}), "blocks": made.num_blocks,
        "groups": [[type(g.kv_cache_spec).__name__, len(g.layer_names), g.kv_cache_spec.block_size, g.kv_cache_spec.page_size_bytes] for g in made.kv_cache_groups],
        "tokens": tokens, "concurrency": concurrency, "in_flight": cfg.max_in_flight_tokens, "layout": str(cfg.cache_config.kv_cache_layout),
    }


def _try(f):
    try:
        return f()
    except BaseException as e:
        return f"{type(e).__name__}: {e}"


def in_fork(work, write_fd):
    """Run work() in a child; its result goes to write_fd as a JSON line."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        work()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


class Gpu:
    """A child with vLLM imported for one (gfx, aiter); forks again for each request."""

    def __init__(self, gfx, aiter, env=(), others=()):
        r1, w1 = os.pipe()
        r2, w2 = os.pipe()

        def serve():
            os.close(w1), os.close(r2)
            for g in others:  # inherited ends of the other children's pipes: kept, they would never see end of file
                os.close(g.to.fileno()), os.close(g.back.fileno())
            os.dup2(2, 1)  # what vLLM prints must not mix with our answers
            t = time.time()
            parser = become(gfx, aiter, dict(env))
            print(f"rig: {gfx} aiter={aiter} ready in {time.time() - t:.1f} s", file=sys.stderr)
            with os.fdopen(r1) as lines:
                for line in lines:
                    req = json.loads(line)
                    warm(req)
                    ra, wa = os.pipe()

                    def work():
                        os.close(ra)
                        os.environ["FAKE_AMDSMI_GPUS"] = str(req.get("gpus", 8))
                        if req.get("memory_bytes"):
                            os.environ["FAKE_AMDSMI_MEMORY"] = str(req["memory_bytes"])
                        with os.fdopen(wa, "w") as f:
                            f.write(json.dumps(judge(parser, req), default=str))

                    pid = in_fork(work, wa)
                    os.close(wa)
                    with os.fdopen(ra) as f:
                        answer = f.read()
                    _, status = os.waitpid(pid, 0)
                    if not answer:
                        answer = json.dumps({"id": req.get("id"), "parse": "error", "parse_error": f"the judging process died: status {status}"})
                    os.write(w2, (answer + "\n").encode())

        self.pid = in_fork(serve, w2)
        os.close(r1), os.close(w2)
        self.to, self.back = os.fdopen(w1, "w"), os.fdopen(r2)

    def end(self):
        self.to.close(), self.back.close()
        os.waitpid(self.pid, 0)

    def ask(self, req):
        self.to.write(json.dumps(req) + "\n")
        self.to.flush()
        return self.back.readline().strip() or json.dumps({"id": req.get("id"), "parse": "error", "parse_error": "the vLLM process of this GPU died (see stderr)"})


def main():
    os.environ.update({k: v for k, v in BASE_ENV.items()})
    t = time.time()
    preload()
    print(f"rig: preload {time.time() - t:.1f} s", file=sys.stderr)
    gpus = {}
    for line in sys.stdin:
        if not line.strip():
            continue
        req = json.loads(line)
        key = (req.get("gfx", "gfx942"), bool(req.get("aiter", True)), tuple(sorted((req.get("env") or {}).items())))
        if key not in gpus:
            if len(gpus) >= KEEP:
                gpus.pop(next(iter(gpus))).end()
            gpus[key] = Gpu(*key, list(gpus.values()))
        print(gpus[key].ask(req), flush=True)
    for g in gpus.values():
        g.end()


if __name__ == "__main__":
    main()
