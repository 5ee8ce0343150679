"""Recorded steps, and the runs that they are records of.

A folder a device holds `cases-GROUP.jsonl.gz` as `recorder` wrote them, a line a case, and the allocator's event logs
`trace-NN.json.gz`.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafa_prof.catalog import spec_from_config
from lorafa_prof.specs import MethodSpec, RunSpec
from tests.ground_truth.recorder.cases import DEFAULT, MODELS, TARGETS, Case

FOLDER = Path(__file__).parent
CPU = "cpu"
_DTYPES: dict[str, Any] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
#: The methods that the recorder has under other names: its LoRA-FA is PEFT's LoRA with A held still, under AdamW.
_METHODS = dict.fromkeys(("lora-fa", "lora-fa-opt", "qlora-fa"), "lora-fa-peft")


@dataclass(frozen=True)
class Record:
    """One recorded case."""

    device: str
    """The folder's name: "cpu", or a card of the catalog."""
    data: dict[str, Any]

    @property
    def case(self) -> Case:
        """What was run."""
        return {**DEFAULT, **self.data["case"]}

    @property
    def name(self) -> str:
        """A short name, for tests and tables: the model, the method, and what is not usual."""
        case = self.case
        usual = ("model", "method", "bs", "seq", "rank", "steps", "trace")
        others = [f"{key} {case[key]}" for key in DEFAULT if key not in usual and case[key] != DEFAULT[key]]
        return ", ".join([f"{case['model']} {case['method']} {case['bs']}x{case['seq']} r{case['rank']}", *others])

    @property
    def steady(self) -> dict[str, Any]:
        """The last measured step: optimizer states are there, and all that the allocator keeps."""
        step: dict[str, Any] = self.data["steps"][-1]
        return step

    @property
    def releases(self) -> dict[str, str]:
        """The versions that ran, without the build that torch adds ("2.13.0+cu130")."""
        versions = self.data["versions"]
        return {name: versions[name].partition("+")[0] for name in ("torch", "transformers", "peft")}

    def other_releases(self) -> str:
        """Say which of the installed releases are others than those that ran; empty where none is."""
        found = []
        for name, version in self.releases.items():
            installed = importlib.metadata.version(name).partition("+")[0]
            if installed != version:
                found.append(f"{name} {version} ran, {installed} is installed")
        return "; ".join(found)


def devices() -> list[str]:
    """Return the names of the devices that there are records of."""
    return sorted(folder.name for folder in FOLDER.iterdir() if list(folder.glob("cases-*.jsonl.gz")))


def read_records(device: str) -> list[Record]:
    """Return the records of a device, group by group in the order of their files."""
    found = []
    for path in sorted((FOLDER / device).glob("cases-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found += [Record(device, json.loads(line)) for line in lines]
    return found


def run_of(case: Case) -> RunSpec:
    """Return the run that a case is."""
    kind, architecture = MODELS[case["model"]]
    config = {"model_type": kind, **_complete(kind, architecture)}
    if case["layers"]:
        config["num_hidden_layers"] = case["layers"]
    method = _METHODS.get(case["method"], case["method"])
    return RunSpec(
        model=spec_from_config(case["model"], config),
        method=MethodSpec(
            name=method, rank=case["rank"], targets=tuple(TARGETS[case["targets"]][kind]), dropout=case["dropout"]
        ),
        bs=case["bs"],
        seq=case["seq"],
        padded=case["padding"],
        dtype=_DTYPES[case["dtype"]],
        amp=case["autocast"],
        adapter_dtype="auto" if case["adapter_dtype"] == "float32" else "bf16",
        attn=case["attn"],
        checkpointing="full" if case["ckpt"] else "none",
        optimizer="lorafa-peft" if case["method"] == "lora-fa-opt" else case["optimizer"],
        quant="nf4-dq" if case["method"].startswith("qlora") else "none",
    )


def _complete(kind: str, architecture: dict[str, Any]) -> dict[str, Any]:
    """Add what the recorder leaves to transformers' own defaults, as a published configuration would spell it out."""
    from transformers import AutoConfig

    made = AutoConfig.for_model(kind, **architecture)
    found: dict[str, Any] = {**made.to_dict(), **architecture}
    return found
