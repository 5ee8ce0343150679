"""Times `sweep` over a million configurations to a CSV file; the bar is ten seconds.

    python benchmarks/bench_sweep_csv.py [--runs N]

The whole command in a fresh process: imports, plans, every figure of every row, the file. Two methods at 500 batch
sizes and 1000 sequence lengths of Llama-2-7B, held against one card. The clock is the processor time of the command,
user and system, so that other work on the machine hardly counts; it uses one core. Its memory at the highest has a bar
too, since rows are streamed: 512 MiB.

Some rows are looked up in the file and compared with what `predict` says of them alone.

Prints one JSON object. Exits 1 when a bar is missed, 2 when the command fails or a row is wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.specs import MethodSpec, RunSpec

BAR = 10.0
MEMORY_BAR = 512 * 2**20
BATCHES, LENGTHS, METHODS, GPU = range(1, 501), range(97, 4097, 4), ("lora", "lora-fa"), "rtx4090"
ARGS = [
    "-m", "lorafa_prof", "sweep", "--model", "llama2-7b", "--method", ",".join(METHODS), "--bs", "1:500",
    "--seq", "97:4096:4", "--gpu", GPU,
]  # fmt: skip


def run(file: Path) -> tuple[float, float, int]:
    """Return processor seconds, seconds by the wall's clock, and the most memory of a sweep into a new file, bytes."""
    file.unlink(missing_ok=True)
    began = time.perf_counter()
    child = os.posix_spawn(
        sys.executable, [sys.executable, *ARGS, "-o", str(file)], os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )  # fmt: skip
    _, status, usage = os.wait4(child, 0)
    if status:
        print(f"bench_sweep_csv: the command failed with status {status}", file=sys.stderr)
        sys.exit(2)
    memory = usage.ru_maxrss * 1024  # kilobytes on Linux
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began, memory


def check(file: Path) -> int:
    """Compare rows across the file with predictions of their configurations alone; return how many rows there are."""
    per_method = len(BATCHES) * len(LENGTHS)
    looked_at = {1 + number for number in range(0, 2 * per_method, 104_729)} | {1, 2 * per_method}
    number = 0
    with file.open(encoding="utf-8", newline="") as stream:
        columns = stream.readline().rstrip().split(",")
        for number, line in enumerate(stream, start=1):
            if number in looked_at:
                [values] = csv.reader([line])  # some are lists, in quotes
                check_row(number, dict(zip(columns, values, strict=True)), per_method)
    return number


def check_row(number: int, row: dict[str, str], per_method: int) -> None:
    """Compare one row: that it is in its place, and that its figures are those of `predict`."""
    method, within = divmod(number - 1, per_method)
    length, batch = divmod(within, len(BATCHES))
    run = RunSpec(
        model=load_model("llama2-7b"), method=MethodSpec(name=METHODS[method]), bs=BATCHES[batch], seq=LENGTHS[length]
    )
    p = predict(run, [load_device(GPU)])
    expected = {
        "method": run.method.name, "bs": run.bs, "seq": run.seq, "peak_allocated_bytes": p.memory.peak_allocated_bytes,
        "activations_bytes": p.memory.activations_bytes, "peak_moment": p.memory.peak_moment,
        "executed_flops": p.throughput.executed_flops, "headroom_bytes": p.fit[0].headroom_bytes,
    }  # fmt: skip
    if {name: row[name] for name in expected} != {name: str(value) for name, value in expected.items()}:
        print(f"bench_sweep_csv: row {number} is {row}, not {expected}", file=sys.stderr)
        sys.exit(2)


def main() -> int:
    """Measure, print, and say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs (default: 3)")
    runs = max(1, parser.parse_args().runs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.csv"
        seen = [run(file) for _ in range(runs)]
        size, rows = file.stat().st_size, check(file)
    processor, wall = (statistics.median(times) for times in list(zip(*seen, strict=True))[:2])
    memory = max(each[2] for each in seen)
    figures = {
        "benchmark": "sweep_csv",
        "rows": rows,
        "file_bytes": size,
        "runs": runs,
        "processor_s": round(processor, 3),
        "wall_s": round(wall, 3),
        "rows_per_processor_s": round(rows / processor),
        "memory_bytes": memory,
        "bar_s": BAR,
        "memory_bar_bytes": MEMORY_BAR,
        "ok": processor <= BAR and memory <= MEMORY_BAR and rows == 10**6,
    }
    print(json.dumps(figures, indent=2))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
