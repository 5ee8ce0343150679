"""The runs of foundation-model-stack/fms-acceleration on one A100 80 GB, of tests/ground_truth/published.csv."""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import load_model
from lorafa_prof.specs import MethodSpec, RunSpec

PUBLISHED = Path(__file__).parents[1] / "ground_truth" / "published.csv"
ROWS = {row["id"]: row for row in csv.DictReader(PUBLISHED.read_text(encoding="utf-8").splitlines())}

#: The rows' model, method and options. What they leave open: QLoRA ran through TRL's SFTTrainer with bf16=True, which
#: is autocast; its 'baseline' leaves the norms in fp32 and nothing else (after the run 532,480 bytes more were
#: allocated than in the 'accelerated' one: 65 norms of 4096 elements, 2 bytes each).
MISTRAL = {"model": "mistral-7b", "bs": 4, "seq": 4096}
LORA = {"rank": 16, "targets": ("q_proj", "k_proj", "v_proj", "o_proj"), "dropout": 0.1}
QLORA = {"quant": "nf4-dq", "amp": True}
FMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fms-1": ("full", {}, MISTRAL),
    "fms-2": ("lora", LORA, MISTRAL),
    "fms-3": ("qlora", LORA, {**MISTRAL, **QLORA}),
    "fms-4": ("qlora", LORA, {**MISTRAL, **QLORA, "prepare_kbit": "trl"}),
    "fms-1-bs8": ("full", {}, {**MISTRAL, "bs": 8}),
    "fms-2-bs8": ("lora", LORA, {**MISTRAL, "bs": 8}),
    "fms-3-bs8": ("qlora", LORA, {**MISTRAL, **QLORA, "bs": 8}),
    "fms-4-bs8": ("qlora", LORA, {**MISTRAL, **QLORA, "bs": 8, "prepare_kbit": "trl"}),
    "fms-5": ("full", {}, {"model": "santacoder-1.1b", "bs": 4, "seq": 2048}),
}


def releases(transformers: str, peft: str) -> pytest.MarkDecorator:
    """Skip a test where other releases are installed."""
    installed = tuple(importlib.metadata.version(name) for name in ("transformers", "peft"))
    wanted = (transformers, peft)
    return pytest.mark.skipif(installed != wanted, reason=f"needs transformers {transformers} and peft {peft}")


def fms_run(name: str) -> RunSpec:
    """Return the run of a row."""
    method, inner, options = FMS[name]
    rest = {key: value for key, value in options.items() if key != "model"}
    return RunSpec(
        model=load_model(options["model"]), method=MethodSpec(name=method, **inner), attn="flash", checkpointing="full",
        optimizer="adamw", **rest,
    )  # fmt: skip
