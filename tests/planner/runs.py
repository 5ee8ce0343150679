"""Random runs of a page, and the command line's answer to one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.results import PART_FIELDS
from lorafa_prof.specs import DeviceSpec, MethodSpec, ModelSpec, RunSpec

#: What of `memory` the page answers.
MEMORY = (*PART_FIELDS, "peak_allocated_bytes", "context_bytes", "peak_moment")
#: What of a card in `fit` it answers.
FIT = ("device", "capacity_bytes", "context_bytes", "fits", "headroom_bytes", "max_bs")

model_of = cache(load_model)
device_of = cache(load_device)


def random_runs(plans: Mapping[str, Any], number: int, seed: int = 20260130) -> Iterator[dict[str, Any]]:
    """Yield runs of all kinds that the page offers: single sequences, odd lengths, ranks from 1 up, long contexts."""
    chance = random.Random(seed)
    for _ in range(number):
        model = chance.choice(plans["models"])
        longest = min(model["max_positions"] or 2**17, 2**17)
        yield {
            "model": model["name"],
            "method": chance.choice(list(model["methods"])),
            "gpu": chance.choice(plans["devices"])["name"],
            "bs": chance.choice((1, 1, 2, 3, chance.randint(1, 64), chance.randint(1, 5000))),
            "seq": min(longest, chance.choice((1, 17, 128, 4096, chance.randint(1, 2048), chance.randint(1, longest)))),
            "rank": chance.choice((1, 2, 8, 16, 64, 128, chance.randint(1, 300), 65519, 65521, 65536)),
            **{name: chance.choice(values) for name, values in plans["options"]},
        }


def predicted(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `lorafa-prof predict --engine analytic --format json` says of a run: figures, or the refusal."""
    model: ModelSpec = model_of(run["model"])
    device: DeviceSpec = device_of(run["gpu"])
    method = MethodSpec(name=run["method"], rank=run["rank"])
    rest = {k: v for k, v in run.items() if k not in ("model", "method", "gpu", "rank")}
    try:
        answer = predict(RunSpec(model=model, method=method, **rest), [device]).to_json()
    except LorafaProfError as error:
        return {"refused": str(error)}
    return {
        "memory": {name: answer["memory"][name] for name in MEMORY},
        "fit": {name: answer["fit"][0][name] for name in FIT},
        "assumptions": sorted(answer["assumptions"]),
        "unmodelled": sorted(answer["unmodelled"]),
    }


def comparable(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's answer in the form of `predicted`: remarks in any order."""
    if "refused" in answer:
        return dict(answer)
    return {**answer, **{name: sorted(answer[name]) for name in ("assumptions", "unmodelled")}}
