"""`calibrate`, `measure` and `compare --profile` on this machine's CPU, one after the other, as people run them.

Everything here is by the clock on the wall, in one thread: other processes lengthen all of it, at one time more than at
another, so that the factor is a wide one. By the clock of the thread it is narrower (`test_cpu_steps.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafa_prof.cli import main

pytestmark = pytest.mark.slow

#: A prediction may be off by this factor, by the wall clock of a machine that others use as well.
FACTOR = 3.0

#: From mostly the host's to mostly products: width, layers, method, batch and length.
CASES = {
    "small": (64, 2, "lora", 1, 32),
    "middle": (256, 4, "lora-fa", 2, 128),
    "large": (512, 4, "full", 2, 256),
}


def config(hidden: int, layers: int) -> dict[str, Any]:
    """A small Llama."""
    return {
        "model_type": "llama", "hidden_size": hidden, "num_attention_heads": hidden // 32, "head_dim": 32,
        "num_key_value_heads": hidden // 32, "intermediate_size": 11 * hidden // 4, "num_hidden_layers": layers,
        "vocab_size": 4 * hidden, "max_position_embeddings": 512,
    }  # fmt: skip


def test_steps_are_predicted_within_a_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each median of measured steps beside the predicted one; the order of the three is the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["calibrate", "--device", "cpu", "--budget-s", "30", "-o", "cpu.json"]) == 0
    finally:
        torch.set_num_threads(threads)
    found = {}
    for name, (hidden, layers, method, bs, seq) in CASES.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config(hidden, layers)))
        sizes = ["--bs", str(bs), "--seq", str(seq), "--rank", "8", "--dtype", "fp32", "--method", method]
        args = ["measure", "--model", f"./{name}", "--device", "cpu", *sizes, "--optimizer", "adamw", "--no-trace"]
        assert main([*args, "--steps", "15", "-o", f"{name}.out"]) == 0
        capsys.readouterr()
        args = ["compare", f"{name}.out", "--engine", "simulate", "--profile", "cpu.json", "--format", "json"]
        assert main(args) == 0
        [comparison] = json.loads(capsys.readouterr().out)["comparisons"]
        [row] = [row for row in comparison["rows"] if row["name"] == "step_s"]
        found[name] = row["observed"], row["predicted"][0]
    for name, (took, said) in found.items():
        assert took / FACTOR < said < took * FACTOR, (name, found)
    assert sorted(found, key=lambda name: found[name][0]) == sorted(found, key=lambda name: found[name][1])
