"""Runs for measuring processes that go wrong: what they do stands in the name of the model; and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.results import Measurement
from lorafa_prof.specs import MethodSpec, ModelSpec, RunSpec

#: The module of the measuring process, see there for the words.
FAULTS = "tests.measure.faults"
OPTIONS = {"device": "cpu", "steps": 4, "warmup": 1, "trace": True, "cap_bytes": None}


def faulty_run(deeds: str = "well", *, bs: int = 2) -> RunSpec:
    """A run whose measuring process does these deeds, joined by "+", before its third step."""
    model = ModelSpec(
        name=deeds, architecture="llama", task="causal-lm", hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=8, intermediate_size=8, vocab_size=8, max_positions=None, tie_word_embeddings=False,
        hidden_act="silu", config={"model_type": "llama"},
    )  # fmt: skip
    return RunSpec(model=model, method=MethodSpec(name="lora", rank=4), bs=bs, seq=16)


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make measuring processes ones that only pretend, and a folder the one to work in; return it."""
    monkeypatch.setattr("lorafa_prof.measure.isolate.CHILD", FAULTS)
    monkeypatch.setattr("lorafa_prof.measure.process.GRACE_S", 0.3)
    monkeypatch.setenv("FAULTS_LOG", str(folder / "log"))
    monkeypatch.chdir(folder)
    return folder


def saved(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of a results file, each of which reads back as it was written."""
    document = json.loads(path.read_text())
    assert set(document) == {"measurements"}
    for entry in document["measurements"]:
        assert Measurement.from_json(entry).to_json() == entry
    entries: list[dict[str, Any]] = document["measurements"]
    return entries
