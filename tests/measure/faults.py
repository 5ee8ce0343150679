"""A measuring process that goes wrong in every way: the real child around a worker that needs no torch.

What it does is said by the name of the run's model: words separated by +, each done in its turn; after "oom-above"
comes the largest batch that fits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafa_prof.errors import BadInputError, DeviceError, UnsupportedError
from lorafa_prof.measure.child import main
from lorafa_prof.results import PART_FIELDS, Measurement, Memory, Spread, StepTime, Throughput
from lorafa_prof.specs import RunSpec

VERSIONS = {"torch": "9.9", "transformers": "9.9", "peft": "9.9", "python": "3.99"}
ENVIRONMENT = {"device": "Fake 1", "device_type": "cpu", "total_bytes": 2**30}


class OutOfMemoryError(RuntimeError):
    """Called as torch's."""


class Faults:
    """Takes pretended steps, and goes wrong where the model's name says so."""

    def place(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        if "FAULTS_NO_PLACE" in os.environ:
            _sleep()
        if options["device"] != "cpu":
            raise DeviceError("no CUDA device; --device cpu measures there")
        return {"environment": ENVIRONMENT, "versions": {**VERSIONS, "bitsandbytes": "9.9"}}

    def measure(self, run: RunSpec, options: Mapping[str, Any], report: Callable[[Measurement], None]) -> Measurement:
        seen = Measurement(outcome="ok", run=run, versions=VERSIONS, environment=ENVIRONMENT)
        words = os.path.basename(run.model.name).split(":")[0].split("+")
        trace_of_runs(run)
        if "mute" not in words:
            report(seen)
        for number in range(1, options["steps"] + 1):
            for word in words:
                if word in DEEDS and number == min(3, options["steps"]):
                    DEEDS[word]()
            if "oom-above" in words and run.bs > int(words[-1]):
                DEEDS["oom"]()
            step = StepTime(step_s=number / 8, forward_s=0.0625, tokens=run.bs * run.seq)
            seen = replace(seen, steps=(*seen.steps, step), parameters={"total": 8, "trainable": 2})
            if "mute" not in words:
                report(seen)
        memory = Memory(
            **dict.fromkeys(PART_FIELDS, 2 ** 20), peak_allocated_bytes=8 * 2**20, peak_reserved_bytes=None,
            context_bytes=None, peak_device_bytes=None, peak_moment="backward: a.b.0",
        )  # fmt: skip
        spread = Spread(least_s=0.125, quarter_s=0.25, median_s=0.5, three_quarters_s=0.75, most_s=1.0)
        rates = Throughput(step_s=0.5, tokens_per_s=2.0 * run.bs * run.seq)
        return replace(seen, memory=memory, spread=spread, throughput=rates)


def trace_of_runs(run: RunSpec) -> None:
    """Note that a run was really begun, where a test asks for it."""
    if path := os.environ.get("FAULTS_LOG"):
        with open(path, "a", encoding="utf-8") as log:
            log.write(f"{run.method.name} {run.bs} {run.seq} {run.method.rank} pid={os.getpid()}\n")


def _raise(error: BaseException) -> Callable[[], None]:
    def deed() -> None:
        raise error

    return deed


def _sleep() -> None:
    """Hang, and let a test that waits for it know."""
    if path := os.environ.get("FAULTS_LOG"):
        Path(f"{path}-hanging").touch()
    while True:
        time.sleep(60)


def _stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _sleep()


def _grandchild() -> None:
    """Start a process that would outlive this one."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    if path := os.environ.get("FAULTS_GRANDCHILD"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(sleeper.pid))


def _garbage() -> None:
    sys.stdout.write("\x1emeasurement {\n")
    sys.stdout.flush()
    os.write(1, b'\x00\xff\x1edone {"no": 1}\nhalf a line')
    subprocess.run([sys.executable, "-c", "print('\\x1edone {}')"], check=True)


def _complain(text: str) -> None:
    sys.stderr.write(text)


def _half_a_frame() -> None:
    """Die in the middle of a frame: written past the worker, to the pipe itself."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b'\x1emeasurement {"outcome": "o')
        except OSError:
            continue
        break
    os.kill(os.getpid(), signal.SIGKILL)


DEEDS: dict[str, Callable[[], None]] = {
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sigsegv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "oom": _raise(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "cpu-oom": _raise(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")),
    "memory-error": _raise(MemoryError()),
    "error": _raise(ValueError("the layers do not match")),
    "bad-input": _raise(BadInputError("the targets match nothing")),
    "unsupported": _raise(UnsupportedError("no such thing here")),
    "hang": _sleep,
    "stubborn": _stubborn,
    "exit0": lambda: os._exit(0),
    "exit7": lambda: os._exit(7),
    "sys-exit": lambda: sys.exit(5),
    "garbage": _garbage,
    "stderr": lambda: _complain("last words of the child\n"),
    "flood": lambda: _complain("y" * 5_000_000),
    "half-a-frame": _half_a_frame,
    "grandchild": _grandchild,
    "slow": lambda: time.sleep(1.0),
}  # fmt: skip

if __name__ == "__main__":
    main(Faults)
