"""Runs a script plainly, then once more wholly under torch's profiler; writes down the most that each step held.

    python under_profiler.py OUT.json script.py [ARGS...]

Under the profiler everything is counted from the beginning of the script on: nothing has to be known of models,
optimizers or variables. What was there before are tensors that libraries have made for themselves. A step goes from the
end of one optimizer step to the end of the next.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.support.profiled import allocations

OPTIMIZER = "Optimizer.step#"


def main() -> None:
    out, script = sys.argv[1:3]
    sys.argv[:] = sys.argv[2:]
    sys.path[0] = os.path.dirname(os.path.abspath(script))

    def run() -> None:
        runpy.run_path(script, run_name="__main__")

    run()
    gc.collect()
    before = sum(t.untyped_storage().nbytes() for t in gc.get_objects() if isinstance(t, torch.Tensor))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end
    events = allocations(run)
    inside = [any(name.startswith(OPTIMIZER) for name in event.stack) for event in events]
    ends = [i for i in range(len(events)) if inside[i] and (i + 1 == len(events) or not inside[i + 1])]
    steps = [events[begin + 1 : end + 1] for begin, end in zip([-1, *ends], ends, strict=False)]
    Path(out).write_text(json.dumps([before + max(event.live for event in step) for step in steps]))


if __name__ == "__main__":
    main()
