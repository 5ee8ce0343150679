"""Times the analytic engine over a grid of one million batch sizes and sequence lengths; the bar is one second.

    python benchmarks/bench_sweep.py [--runs N]

Timed from the run's description to the last peak: making the plan (the polynomials) is part of it. On one core.

Prints one JSON object. Exits 1 when the slowest method misses the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

# numpy's libraries read these when they load, so they are set before numpy is imported.
for pool in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR"):
    os.environ[f"{pool}_NUM_THREADS"] = "1"

import numpy as np

from lorafa_prof.analytic.plan import StepPlan, plan
from lorafa_prof.catalog import load_model
from lorafa_prof.specs import MethodSpec, RunSpec

BAR = 1_000_000
METHODS = ("full", "lora", "lora-fa", "qlora", "vera")
#: 1000 batch sizes, and 1000 sequence lengths up to the 4096 positions of the model.
BATCHES = np.arange(1, 1001)
LENGTHS = np.arange(97, 4097, 4)


def check_sample(planned: StepPlan, bs: np.ndarray, seq: np.ndarray) -> None:
    """A wrong figure is quickly computed: on a sample, each configuration alone must get the same bytes."""
    peaks = planned.peak_allocated(bs, seq)
    for i in np.linspace(0, len(bs) - 1, 25).astype(int):
        alone = planned.peak_allocated(bs[i : i + 1], seq[i : i + 1])
        if int(alone[0]) != int(peaks[i]):
            sys.exit(f"bench_sweep: bs {bs[i]} seq {seq[i]}: {alone[0]} bytes alone, {peaks[i]} in the grid")


def rate(run: RunSpec, bs: np.ndarray, seq: np.ndarray, runs: int) -> float:
    """Configurations per second in the median of `runs` runs."""
    check_sample(plan(run), bs, seq)
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        plan(run).peak_allocated(bs, seq)
        times.append(time.perf_counter() - began)
    return len(bs) / statistics.median(times)


def main() -> int:
    """Measure, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each method (default: 3)")
    runs = max(1, parser.parse_args().runs)
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    bs, seq = (axis.ravel() for axis in np.meshgrid(BATCHES, LENGTHS))
    model = load_model("llama2-7b")
    rates = {method: rate(RunSpec(model=model, method=MethodSpec(name=method)), bs, seq, runs) for method in METHODS}
    slowest = min(rates.values())
    figures = {
        "benchmark": "sweep",
        "model": model.name,
        "configurations": len(bs),
        "runs": runs,
        "methods": {method: round(value) for method, value in rates.items()},
        "slowest_per_s": round(slowest),
        "bar": BAR,
        "ok": slowest >= BAR,
    }
    print(json.dumps(figures, indent=2))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
