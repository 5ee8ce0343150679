"""Times the whole predict command in a fresh process against importing click and numpy alone; the bar is twice that.

    python benchmarks/bench_cold_start.py [--runs N]

The imports of click and numpy are what any command of this kind pays before its first own line, on whatever machine;
a ratio to them says what this project adds, and means the same on a slow machine. The two take turns, so that a busy
moment strikes both, and the median sees to the rest.

Bytecode is there, in a folder of the benchmark's own, as it is for any package that was installed: an environment that
keeps Python from writing it (PYTHONDONTWRITEBYTECODE) would have the sources of a checkout compiled at every start.

Prints one JSON object. Exits 1 when the bar is missed, 2 when the command itself fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

BAR = 2.0
COMMAND = ["-m", "lorafa_prof", "predict", "--model", "llama2-7b", "--bs", "8", "--seq", "1024"]
BASELINE = ["-c", "import click, numpy"]


def seconds(args: Sequence[str], bytecode: str) -> float:
    """How long a fresh interpreter takes for `args`, from start to exit, with a folder for bytecode."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *args], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    took = time.perf_counter() - began
    if done.returncode != 0:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        print(f"bench_cold_start: the command failed with exit code {done.returncode}", file=sys.stderr)
        sys.exit(2)
    return took


def main() -> int:
    """Measure, print, and say whether the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="runs of each of the two (default: 15)")
    runs = max(1, parser.parse_args().runs)

    with tempfile.TemporaryDirectory() as bytecode:
        for args in (COMMAND, BASELINE):  # once each untimed: bytecode is compiled, the disk's cache is warm
            seconds(args, bytecode)
        pairs = [(seconds(COMMAND, bytecode), seconds(BASELINE, bytecode)) for _ in range(runs)]
    command, baseline = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = command / baseline

    figures = {
        "benchmark": "cold_start",
        "command": " ".join(COMMAND),
        "baseline": " ".join(BASELINE),
        "runs": runs,
        "command_s": round(command, 4),
        "baseline_s": round(baseline, 4),
        "ratio": round(ratio, 3),
        "bar": BAR,
        "ok": ratio <= BAR,
    }
    print(json.dumps(figures, indent=2))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
