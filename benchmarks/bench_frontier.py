"""Times the thresholds of five methods on ten cards by closed forms; the bar is one second for all fifty.

    python benchmarks/bench_frontier.py [--runs N]

Timed from the runs' descriptions: plans are made anew each time, and both edges of each threshold with their parts are
in it; advice is timed apart and has no bar. Processor time, on one core. Every threshold is checked: `max` fits,
`max + 1` does not.

Prints one JSON object. Exits 1 when the bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

from lorafa_prof.advice import with_advice
from lorafa_prof.analytic.thresholds import ClosedForms
from lorafa_prof.analytic.timer import Timer
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.results import Axis, Threshold
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.thresholds import find_threshold

BAR = 1.0
METHODS = ("full", "lora", "lora-fa", "qlora", "vera")
CARDS = (
    "t4", "v100-32gb", "rtx3090", "rtx4090", "l4", "a100-40gb", "a100-80gb", "h100", "h200", "b200",
)  # fmt: skip


def found(axis: Axis, advised: bool = False) -> list[Threshold]:
    """All fifty thresholds, from nothing."""
    forms, model = ClosedForms(), load_model("llama2-7b")
    runs = [RunSpec(model=model, method=MethodSpec(name=method)) for method in METHODS]
    devices = [load_device(name) for name in CARDS]
    thresholds = [(find_threshold(forms, run, axis, device), device) for run in runs for device in devices]
    if not advised:
        return [threshold for threshold, _ in thresholds]
    ratio = Timer().ratio
    return [with_advice(forms, threshold, device, forms.executed_flops, ratio) for threshold, device in thresholds]


def seconds(work: Callable[[], list[Threshold]], runs: int) -> float:
    """Processor time in the median of `runs` runs."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def check(thresholds: list[Threshold]) -> None:
    """A wrong threshold is quickly found."""
    for t in thresholds:
        edges = (t.at_max is None or t.at_max.fits, t.at_first_oom is None or not t.at_first_oom.fits)
        if not all(edges):
            sys.exit(f"bench_frontier: {t.method} on {t.device}: {t.max} is no threshold")


def main() -> int:
    """Measure, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="timed runs (default: 3)")
    runs = max(1, parser.parse_args().runs)
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    check(found("bs"))
    batches, lengths = seconds(lambda: found("bs"), runs), seconds(lambda: found("seq"), runs)
    figures = {
        "benchmark": "frontier",
        "model": "llama2-7b",
        "thresholds": len(METHODS) * len(CARDS),
        "runs": runs,
        "batch_s": round(batches, 3),
        "sequence_s": round(lengths, 3),
        "batch_with_advice_s": round(seconds(lambda: found("bs", advised=True), 1), 3),
        "bar_s": BAR,
        "ok": max(batches, lengths) <= BAR,
    }
    print(json.dumps(figures, indent=2))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
