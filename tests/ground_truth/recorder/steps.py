"""One case: its steps one by one, then some in one stretch."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.ground_truth.recorder.building import adapt, batch_of, build, optimizer_of
from tests.ground_truth.recorder.cases import Case
from tests.ground_truth.recorder.meters import CpuMeter, CudaMeter

Meter = CpuMeter | CudaMeter


def run(c: Case, device: str, out: Path, index: int) -> dict[str, Any]:
    """Run one case and return its record; running out of memory is a result, any other error is recorded too."""
    cuda = device == "cuda"
    found: dict[str, Any] = {"case": c, "device": device}
    free_at_start = 0
    if cuda:
        free_at_start, total = torch.cuda.mem_get_info()
        found["card"] = {"name": torch.cuda.get_device_name(), "total": total, "free_at_start": free_at_start}
        if c["cap_gib"]:
            torch.cuda.set_per_process_memory_fraction(c["cap_gib"] * 2**30 / total)
        if c["trace"]:  # from the first byte, so that a replay can start from an empty allocator
            torch.cuda.memory._record_memory_history(max_entries=2_000_000, stacks="python", context=None)
    else:
        found["threads"] = torch.get_num_threads()
    meter: Meter = CudaMeter() if cuda else CpuMeter()
    try:
        train(c, device, out, index, found, meter)
        if cuda:
            free, _ = torch.cuda.mem_get_info()
            found["device_used"] = free_at_start - free
            found["outside_allocator"] = free_at_start - free - torch.cuda.memory_reserved()
        found["outcome"] = "ok"
    except Exception as error:  # noqa: BLE001 - recorded, never hidden
        memory = "OutOfMemory" in type(error).__name__ or "out of memory" in str(error)
        found |= {"outcome": "oom" if memory else "error", "error": f"{type(error).__name__}: {error}"[:600]}
        if not memory:
            found["traceback"] = traceback.format_exc()[-1500:]
        if cuda and torch.cuda.is_initialized():
            found["peak_reserved_at_end"] = torch.cuda.max_memory_reserved()
            found["peak_at_end"] = torch.cuda.max_memory_allocated()
    return found | {"phases": meter.phases, "steps": meter.steps}


def train(c: Case, device: str, out: Path, index: int, found: dict[str, Any], meter: Meter) -> None:
    """Build the case's model, measure its steps one by one, then time some in one stretch."""
    with meter.running():
        model, kind = build(c, device)
        meter.phase("model")
        model = adapt(model, kind, c)
        if c["ckpt"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if c["method"] != "full":
                model.enable_input_require_grads()
        model.train()
        optimizer = optimizer_of(model, c)
        if device == "cuda":
            torch.cuda.empty_cache()
        meter.phase("adapters")
        found |= described(model)
        batch = batch_of(model, kind, c, device)
        meter.phase("batch")
        training = Training(model, optimizer, batch, device, c["autocast"])
        times = [training.measured_step(meter) for _ in range(c["steps"])]
    for row, timed in zip(meter.steps, times, strict=True):
        row.update(timed)
    if c["trace"] and device == "cuda":
        found["trace_file"] = write_trace(c, out, index)
    else:
        found["step_s"] = training.seconds_a_step(6 if device == "cuda" else 1)


def described(model: Any) -> dict[str, Any]:
    """Count the model's parameters, all and trained, and name their dtypes."""
    parameters = list(model.parameters())
    return {
        "params": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "dtypes": sorted({f"{'train' if p.requires_grad else 'frozen'}:{p.dtype}" for p in parameters}),
    }


@dataclass
class Training:
    """The loop: one batch again and again."""

    model: Any
    optimizer: Any
    batch: dict[str, Any]
    device: str
    autocast: bool

    def cast(self) -> Any:
        """Return the forward's context."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def clock(self) -> float:
        """Return the time when all work that was issued is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def measured_step(self, meter: Meter) -> dict[str, float]:
        """Run a step, its memory noted at each moment, and return the seconds of each phase."""
        meter.begin()
        times = [self.clock()]
        with self.cast():
            loss = self.model(**self.batch).loss
        meter.moment("forward")
        times.append(self.clock())
        loss.backward()
        meter.moment("backward")
        times.append(self.clock())
        self.optimizer.step()
        meter.moment("optimizer")
        self.optimizer.zero_grad(set_to_none=True)
        times.append(self.clock())
        meter.moment("zero_grad")
        del loss
        meter.end()
        spent = (later - earlier for earlier, later in itertools.pairwise(times))
        return dict(zip(("forward_s", "backward_s", "optimizer_s"), spent, strict=True))

    def seconds_a_step(self, count: int) -> float:
        """Run steps in one stretch, as training does: without a synchronisation a phase."""
        began = self.clock()
        for _ in range(count):
            with self.cast():
                loss = self.model(**self.batch).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            del loss
        return (self.clock() - began) / count


def write_trace(c: Case, out: Path, index: int) -> str:
    """Write the allocator's log of events, and return the file's name."""
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    events = [[e["action"], e["addr"], e["size"], e["stream"]] for e in snapshot["device_traces"][0]]
    segments = [[s["address"], s["total_size"], s["segment_type"]] for s in snapshot["segments"]]
    path = out / f"trace-{index:02d}.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"case": c, "events": events, "segments": segments}, file)
    return path.name
