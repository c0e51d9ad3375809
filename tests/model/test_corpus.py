"""Every recorded configuration plans on eight MI300X or is refused for a reason, and agrees with what is published."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from aim_engine import settings, workflow
from aim_engine.errors import AimError
from aim_engine.model import catalog, source
from aim_engine.perf import memory
from aim_engine.workflow import Request

pytestmark = pytest.mark.corpus
ROOT = Path(os.environ.get("AIM_ENGINE_CORPUS") or "no-corpus") / "models"
CONFIGS = [
    path
    for path in sorted(ROOT.glob("*__*.json"))
    if not path.name.endswith(("safetensors_index.json", "hf_quant_config.json"))
]
MERGED_OR_FOREIGN = {"alibaba__Logics-Thinking", "bryce-hoehn__Qwen3.5-18B-REAP-A3B-Coding"}
"""A vision tower that the config does not describe; a pruned checkpoint that keeps its draft layers' config."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recorded_config_plans_or_is_refused_for_a_reason(path: Path) -> None:
    try:
        plan = workflow.choose(Request(model=str(path), gpus="8xMI300X"), settings.load({"offline": True}))
    except AimError as err:
        assert err.why or err.hint, err.what  # noqa: PT017 - the refusal itself is looked at
        return
    if plan.chosen is None:
        assert plan.rejected
        assert plan.hint
        spec = plan.inputs.model
        too_large = memory.checkpoint_bytes(spec) > 8 * plan.inputs.gpu.memory_bytes * 0.85
        assert too_large or spec.format in ("nvfp4", "nf4", "gguf"), plan.rejected[0].reason


def indexed() -> list[tuple[Path, int]]:
    """Configs beside an index that states its total and holds just what the config describes."""
    found = []
    for path in sorted(ROOT.glob("*.safetensors_index.json")):
        total = json.loads(path.read_bytes()).get("metadata", {}).get("total_size")
        config = path.with_name(path.name.replace(".safetensors_index", ""))
        if total and config.stem not in MERGED_OR_FOREIGN:
            found.append((config, int(total)))
    return found


@pytest.mark.parametrize(("config", "total_bytes"), indexed(), ids=lambda value: getattr(value, "stem", ""))
def test_computed_bytes_agree_with_the_published_index(config: Path, total_bytes: int) -> None:
    assert memory.checkpoint_bytes(source.describe(str(config))) == pytest.approx(total_bytes, rel=0.005)


def test_shapes_agree_with_what_the_engine_read() -> None:
    truth = json.loads((ROOT / "vllm_arch_groundtruth.json").read_bytes())
    compared = 0
    for path in CONFIGS:
        spec = source.describe(str(path)) if path.stem.replace("__", "/") in truth else None
        if spec is None:
            continue
        said = truth[spec.model_id]
        compared += 1
        assert spec.layers == said["total_num_hidden_layers"], spec.model_id
        assert spec.heads == said["total_num_attention_heads"], spec.model_id
        assert spec.kv_heads == said["total_num_kv_heads"], spec.model_id
        assert spec.vocab_size == said["vocab_size"], spec.model_id
        assert (spec.moe.experts if spec.moe else 0) == said["num_experts"], spec.model_id
        assert spec.is_mla == said["is_deepseek_mla"], spec.model_id
        assert spec.hidden_size == said["hidden_size"], spec.model_id
        if not spec.is_mla:
            assert spec.head_dim == said["head_size"], spec.model_id
    assert compared


def published() -> dict[str, int]:
    """Totals that the hub states, by model id."""
    if not (ROOT / "parameter_totals.csv").is_file():
        return {}
    with (ROOT / "parameter_totals.csv").open() as handle:
        return {row["model"]: int(row["safetensors_parameters"]) for row in csv.DictReader(handle)}


def test_counts_agree_with_the_table_of_published_totals() -> None:
    """Within 0.5 %, whichever way a total is published: without draft layers, or with a tied head stored a second time."""
    totals = published()
    close, far = 0, []
    for path in CONFIGS:
        total = totals.get(path.stem.replace("__", "/"))
        if total is None:
            continue
        spec = source.describe(str(path))
        if spec.format in ("nvfp4", "mxfp4", "int4"):
            continue  # 4-bit weights are published as packed bytes
        again = spec.vocab_size * spec.hidden_size if spec.tied_embeddings else 0
        counts = (spec.parameters.total, spec.served_parameters, spec.served_parameters + again)
        error = min(abs(count / total - 1) for count in counts)
        if error < 0.005:
            close += 1
        else:
            far.append((path.stem, f"{error:.1%}"))
    assert close >= 12 * len(far), far


def test_scales_of_block_quantised_checkpoints_are_as_many_as_published() -> None:
    """One scale for 128 x 128 weights: the published total says how many weights are quantised, to a fraction of a percent."""
    totals = published()
    for path in CONFIGS:
        total = totals.get(path.stem.replace("__", "/"))
        spec = source.describe(str(path)) if total else None
        if spec is None or total is None or spec.quantization is None or spec.format != "fp8_block":
            continue
        quantised = sum(getattr(spec.parameters, part) for part in spec.quantization.quantised_parts)
        for count in (spec.parameters.total, spec.served_parameters):
            scales = total - count
            if 0 < scales < 0.001 * total:
                drafts = spec.parameters.mtp if count == spec.served_parameters else 0
                assert scales * 128 * 128 == pytest.approx(quantised - drafts, rel=0.03), path.stem


def bundled() -> list[Path]:
    """Recorded configs of models that the catalogue has too."""
    known = set(catalog.names())
    return [path for path in CONFIGS if path.stem.replace("__", "/") in known]


@pytest.mark.parametrize("path", bundled(), ids=lambda path: path.stem)
def test_the_catalogue_holds_the_facts_of_the_recorded_config(path: Path) -> None:
    listed, recorded = catalog.load(path.stem.replace("__", "/")), source.describe(str(path))
    assert listed is not None
    for field in (
        "groups",
        "parameters",
        "moe",
        "quantization",
        "max_position_embeddings",
        "tied_embeddings",
        "modality",
    ):
        assert getattr(listed, field) == getattr(recorded, field), field
