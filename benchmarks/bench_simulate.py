"""Times `predict --engine simulate` in a fresh process against importing torch, transformers and peft alone.

    python benchmarks/bench_simulate.py [--runs N]

Llama-2-7B with LoRA-FA may take 2.5 times the imports, Llama-3-70B with LoRA twice that. The imports are what any
program that builds the real model pays before its first own line; they take turns with the commands, so that a busy
moment strikes all alike. The memory of the simulator itself, at its highest, has a bar too: 4 GiB for the 70B model.

Prints one JSON object. Exits 1 when a bar is missed, 2 when a command itself fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PREDICT = ["-m", "lorafa_prof", "predict", "--engine", "simulate"]
COMMANDS = {
    "imports": ["-c", "import torch, transformers, peft"],
    "llama2-7b": [*PREDICT, "--model", "llama2-7b", "--method", "lora-fa", "--bs", "8", "--seq", "1024"],
    "llama3-70b": [*PREDICT, "--model", "llama3-70b", "--method", "lora", "--bs", "1", "--seq", "1024"],
}
BARS = {"llama2-7b": 2.5, "llama3-70b": 5.0}
MEMORY_BAR = 4 * 2**30


def run(args: Sequence[str]) -> tuple[float, int]:
    """Return the seconds that a fresh interpreter takes for `args`, and the most memory that it held, bytes."""
    began = time.perf_counter()
    child = os.posix_spawn(
        sys.executable, [sys.executable, *args], os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )  # fmt: skip
    _, status, usage = os.wait4(child, 0)
    took = time.perf_counter() - began
    if status:
        print(f"bench_simulate: {' '.join(args)} failed with status {status}", file=sys.stderr)
        sys.exit(2)
    return took, usage.ru_maxrss * 1024  # kilobytes on Linux


def main() -> int:
    """Measure, print, and say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command (default: 5)")
    runs = max(1, parser.parse_args().runs)
    os.chdir(Path(__file__).resolve().parents[1])

    run(COMMANDS["imports"])  # once untimed: bytecode is compiled, the disk's cache is warm
    rounds = [{name: run(args) for name, args in COMMANDS.items()} for _ in range(runs)]
    seconds = {name: statistics.median(each[name][0] for each in rounds) for name in COMMANDS}
    memory = max(each["llama3-70b"][1] for each in rounds)
    ratios = {name: seconds[name] / seconds["imports"] for name in BARS}
    held = all(ratios[name] <= bar for name, bar in BARS.items()) and memory <= MEMORY_BAR

    figures = {
        "benchmark": "simulate",
        "runs": runs,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "bars": BARS,
        "memory_bytes": memory,
        "memory_bar": MEMORY_BAR,
        "ok": held,
    }
    print(json.dumps(figures, indent=2))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
