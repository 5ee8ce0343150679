"""Record real fine-tuning steps on a device, as ground truth for the predictors.

Independent of the package on purpose: it imports torch, transformers and peft alone, so that what it records can
contradict the package. Each case runs in a process of its own, with a fresh CUDA context; one JSON line a case goes to
OUT/cases-GROUP.jsonl the moment it ends, whatever happens next.

    python -m tests.ground_truth.recorder --out OUT --group core        # then breadth, traces, oom: one CUDA card
    python -m tests.ground_truth.recorder --out OUT --group families --device cpu       # tiny models, no GPU

On CUDA the figures are the caching allocator's own counters. On the CPU, which has none, they follow from what
PyTorch's profiler hears from the allocator: bytes in use at each moment, those that no operator asked for left out
(numbers that Python arithmetic wraps into tensors, and random states, which are on the host whatever the device).
oneDNN is off there, since its scratch memory depends on the processor.

All sizes are bytes, all times seconds. `peak_forward`, `peak_backward` and `peak_optimizer` are the highest since the
step began; `peak` is that of the whole step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.ground_truth.recorder.cases import GROUPS, Case
from tests.ground_truth.recorder.steps import run

#: A forked child that inherited a CUDA context in use ends with this code: its case needs a fresh interpreter.
INHERITED = 3


def record(c: Case, index: int, device: str, path: Path, versions: dict[str, Any]) -> int:
    """Run one case here and append its line; return the code that the process ends with."""
    began = time.time()
    try:
        found = run(c, device, path.parent, index)
    except BaseException as error:  # noqa: BLE001 - the line says it
        found = {"case": c, "outcome": "error", "error": repr(error)[:600]}
    if "forked subprocess" in found.get("error", ""):
        return INHERITED
    found |= {"versions": versions, "wall_s": time.time() - began}
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")
    last = (found.get("steps") or [{}])[-1]
    say(
        index, c["model"], c["method"], f"bs{c['bs']} s{c['seq']} r{c['rank']}", found["outcome"],
        f"peak {last.get('peak', 0) / 2**30:.3f} GiB", f"step {found.get('step_s', 0):.3f} s",
        f"wall {found['wall_s']:.1f} s", found.get("error", "")[:160],
    )  # fmt: skip
    return 0


def say(*words: object) -> None:
    """Print one line at once."""
    print(*words, flush=True)  # noqa: T201 - a program of its own


def record_apart(c: Case, index: int, arguments: argparse.Namespace, path: Path, versions: dict[str, Any]) -> int:
    """Record a case in a forked child, or, where a fork cannot use CUDA, in a fresh interpreter."""
    child = os.fork()
    if child == 0:
        os._exit(record(c, index, arguments.device, path, versions))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == INHERITED:
        command = [sys.executable, "-m", __spec__.name, "--out", str(path.parent), "--group", arguments.group]
        code = subprocess.call([*command, "--device", arguments.device, "--only", str(index)])
    if code != 0:
        died = {"case": c, "outcome": "died", "error": f"its process ended with code {code}", "versions": versions}
        with path.open("a") as file:
            file.write(json.dumps(died) + "\n")
        say(index, c["model"], c["method"], "died", code)
    return code


def main() -> None:
    """Record a group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--group", required=True, choices=sorted(GROUPS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget-s", type=float, default=540, help="start no case after so many seconds")
    parser.add_argument("--only", type=int, help="the case of this number alone, in this process")
    arguments = parser.parse_args()
    import peft
    import torch
    import transformers  # once, before the forks; CUDA itself is first touched in a child

    versions = {
        "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
        "python": platform.python_version(), "cuda": torch.version.cuda,
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"cases-{arguments.group}.jsonl"
    cases = GROUPS[arguments.group]()
    if arguments.only is not None:
        sys.exit(record(cases[arguments.only], arguments.only, arguments.device, path, versions))
    began = time.time()
    for index, c in enumerate(cases):
        if time.time() - began > arguments.budget_s:
            say(f"budget spent: {len(cases) - index} cases not started")
            break
        record_apart(c, index, arguments, path, versions)
    say(f"done in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
