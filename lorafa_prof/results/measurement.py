"""What a measured run answers: what was observed of real training steps, or how far they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorafa_prof.ledger import Ledger
from lorafa_prof.results.figures import SCHEMA, Memory, Throughput
from lorafa_prof.results.plain import (
    build,
    ledger_from_json,
    ledger_to_json,
    plain,
    reading,
    require_schema,
    run_from_json,
    run_to_json,
)
from lorafa_prof.specs import RunSpec, require_choice

Outcome = Literal["ok", "oom", "error", "killed", "timeout", "interrupted"]
"""How a run ended: as it should; out of memory; with an exception; by a signal; past its time limit; by Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """The most of each memory in one phase of the traced step, and what was there when it ended; bytes.

    None: this device has no such memory, or nothing tells it.
    """

    phase: str
    """"load" (what is there before the step), "forward", "loss", "backward", "recompute", "optimizer step",
    "zero_grad"; "script" (what a user's own script does in between)."""
    peak_requested_bytes: int | None
    """Before any rounding."""
    peak_allocated_bytes: int | None
    peak_active_bytes: int | None
    """Allocated, and freed blocks that another stream still uses."""
    peak_reserved_bytes: int | None
    device_bytes: int | None
    """Used on the whole card when the phase ended, by this process or any other (`mem_get_info`)."""
    end_allocated_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Time of one untraced step, seconds."""

    step_s: float
    forward_s: float | None = None
    """With the loss."""
    backward_s: float | None = None
    optimizer_s: float | None = None
    """With zero_grad."""
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much the time of a step varies, seconds."""

    least_s: float
    quarter_s: float
    """A quarter of the steps took less."""
    median_s: float
    three_quarters_s: float
    most_s: float


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Allocator events in a row that belong to one module at work: the timeline of a step is made of these."""

    phase: str
    module: str
    peak_allocated_bytes: int
    end_allocated_bytes: int
    reserved_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Promise:
    """Something that a method or an option promises, and whether the run kept it."""

    name: str
    """"frozen A", "base weights without gradients", "adapter dtype", "checkpointing", "attention kernel", ..."""
    kept: bool
    detail: str
    """What was found, in one sentence."""
    cost_bytes: int | None = None
    """What the violation costs at its worst, where that can be told."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run on a real device; with several processes, one of its ranks."""

    outcome: Outcome
    versions: Mapping[str, str]
    """Of the libraries that ran, Python among them."""
    environment: Mapping[str, Any]
    """What else decides the figures: "device" (its name), "device_type" ("cuda", "cpu"), "total_bytes", "cap_bytes",
    "alloc_conf", "driver", "threads", ..."""
    run: RunSpec | None = None
    """None for a user's own script."""
    command: tuple[str, ...] = ()
    """The script and its arguments; empty where `run` says it all."""
    error: str | None = None
    """The message, for every outcome but "ok"."""
    exit_code: int | None = None
    """Of the process that ran it, where it ended otherwise than "ok"; negative for a signal."""
    memory: Memory | None = None
    """Of the traced step, after warm-up; None where no traced step was completed."""
    phases: tuple[PhaseMemory, ...] = ()
    throughput: Throughput = field(default_factory=Throughput)
    """With the median time of a step."""
    spread: Spread | None = None
    steps: tuple[StepTime, ...] = ()
    parameters: Mapping[str, int] | None = None
    """"total" and "trainable" elements."""
    promises: tuple[Promise, ...] = ()
    alloc_retries: int | None = None
    """Times that the allocator had to free its cache and ask again, in all steps."""
    alloc_ooms: int | None = None
    timeline: tuple[Stretch, ...] = ()
    """Of the traced step."""
    ledger: Ledger | None = None
    """What was alive at the peak of the traced step."""
    rank: int = 0
    world_size: int = 1
    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()
    """What was not observed."""

    def __post_init__(self) -> None:
        require_choice("outcome", self.outcome, Outcome)

    @property
    def violations(self) -> tuple[Promise, ...]:
        """The promises that were not kept."""
        return tuple(promise for promise in self.promises if not promise.kept)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        data = {
            "schema": SCHEMA,
            "engine": "measure",
            "outcome": self.outcome,
            "error": self.error,
            "exit_code": self.exit_code,
            "run": None if self.run is None else run_to_json(self.run),
            "command": list(self.command),
            "rank": self.rank,
            "world_size": self.world_size,
            "versions": dict(self.versions),
            "environment": dict(self.environment),
            "parameters": None if self.parameters is None else dict(self.parameters),
            "alloc_retries": self.alloc_retries,
            "alloc_ooms": self.alloc_ooms,
        }
        data |= {name: plain(getattr(self, name)) for name in _PLAIN}
        if self.ledger is not None:
            data["ledger"] = ledger_to_json(self.ledger)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a newer schema, a missing key, or a value of the wrong type.
        """
        require_schema(data, "engine", "measure", "measurements")
        with reading("measurement"):
            ledger, run, memory, spread = (data.get(name) for name in ("ledger", "run", "memory", "spread"))
            fields: dict[str, Any] = {
                name: tuple(build(kind, item) for item in data[name]) for name, kind in _LISTS.items()
            }
            fields |= {name: data[name] for name in _SAME}
            fields |= {name: tuple(data[name]) for name in ("command", "assumptions", "unmodelled")}
            fields |= {
                "run": None if run is None else run_from_json(run),
                "memory": None if memory is None else build(Memory, memory),
                "spread": None if spread is None else build(Spread, spread),
                "throughput": build(Throughput, data["throughput"]),
                "ledger": None if ledger is None else ledger_from_json(ledger),
            }
            return build(cls, fields)


_LISTS: Mapping[str, Any] = {"phases": PhaseMemory, "steps": StepTime, "timeline": Stretch, "promises": Promise}
_PLAIN = ("memory", "throughput", "spread", *_LISTS, "assumptions", "unmodelled")
_SAME = (
    "outcome", "error", "exit_code", "rank", "world_size", "versions", "environment", "parameters", "alloc_retries",
    "alloc_ooms",
)  # fmt: skip


def measurements_to_json(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the document that `measure` and `run` write."""
    return {"measurements": [measurement.to_json() for measurement in measurements]}
