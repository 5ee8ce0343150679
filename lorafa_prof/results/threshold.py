"""Where a run stops fitting a device along one axis, and what would move that point, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafa_prof.results.axes import Axis, along
from lorafa_prof.results.figures import PART_FIELDS, SCHEMA, Memory
from lorafa_prof.results.plain import build, plain, reading, require_schema, run_from_json, run_to_json
from lorafa_prof.specs import RunSpec


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One configuration beside the threshold, as its engine judges it."""

    value: int
    """Along the axis."""
    fits: bool
    headroom_bytes: int | None
    """Capacity less all that is needed, as `Fit` has it; negative where it does not fit; None where not observed."""
    memory: Memory | None
    """At the peak; None of a run that was really taken and ended before its peak was known."""
    oom: str | None = None
    """PyTorch's message, where the engine knows which allocation fails."""
    step_s: float | None = None
    """Seconds of its step, by the timeline of closed forms."""
    tokens_per_s: float | None = None
    mfu: float | None = None

    @property
    def largest_part(self) -> str | None:
        """The part of the peak that has most bytes: a key of `PART_FIELDS`."""
        if self.memory is None:
            return None
        sizes = {name: getattr(self.memory, name) or 0 for name in PART_FIELDS}
        return max(sizes, key=lambda name: sizes[name])


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of the first configuration that does not fit, judged by the engine that judged the configuration."""

    what: str
    """In words: "full activation checkpointing"."""
    options: str
    """What to add to the command line: "--checkpointing full"."""
    alters: str | None
    """What it changes of the training's result; None where the result is the same but for rounding."""
    saved_bytes: int | None
    """Less needed at the configuration that does not fit; negative where it needs more."""
    fits: bool
    """Whether that configuration then fits."""
    max: int | None
    """The new threshold; None where it was not looked for."""
    flops_ratio: float | None
    """Executed FLOPs a token, as a share of those without the change. Arithmetic, not time: what moves no FLOPs
    (dequantisation, casts, a smaller batch that fills the device less) is not in it."""
    note: str | None = None
    time_ratio: float | None = None
    """Seconds a token, as a share of those without the change, by the timeline of closed forms; None where the device's
    speed is not known, or that of the step."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The largest batch, sequence or rank of one method that fits one device.

    `max` fits, and nothing beyond it does up to `limit`; `first_oom` is `max + 1`. Both verdicts are the engine's own.
    """

    engine: str
    device: str
    axis: Axis
    run: RunSpec
    """As it was asked for; `max` and `first_oom` take the place of its value along the axis."""
    versions: Mapping[str, str]
    max: int
    """0: not even one fits."""
    first_oom: int | None
    """None: nothing that was looked at fails; `limited_by` says why no more was looked at."""
    limit: int
    """The last value that was looked at, or could have been."""
    limited_by: str
    """What the limit is."""
    capacity_bytes: int
    """The device's memory as torch sees it, CUDA context included."""
    context_bytes: int | None
    """CUDA context and libraries, counted in the verdict; None: not known, and so not counted."""
    at_max: Edge | None
    """None where `max` is 0."""
    at_first_oom: Edge | None
    fails_from: int | None = None
    """The smallest that does not fit, where that is below `max`: memory does not always rise along an axis."""
    advice: tuple[Change, ...] = ()
    """Best first: what makes `first_oom` fit at the least time (or arithmetic), then what only helps."""
    profile: str | None = None
    """Which profile of the device its times rest on, "default" or "measured"; None: there are none."""
    why_no_time: str | None = None
    """Why there is no time at `max` though one was asked for."""
    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.run.method.name

    def at(self, value: int) -> RunSpec:
        """Return the run with another value along the axis."""
        return along(self.run, self.axis, value)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with the figures at `max` beside it by names of their own."""
        data: dict[str, Any] = {"schema": SCHEMA, "kind": "threshold"} | plain(self)
        data["run"] = run_to_json(self.run)
        return data | self._derived()

    def _derived(self) -> dict[str, Any]:
        edge, beyond = self.at_max, self.at_first_oom
        memory = edge.memory if edge else None
        return {
            "method": self.method,
            "peak_allocated_bytes_at_max": memory.peak_allocated_bytes if memory else None,
            "peak_reserved_bytes_at_max": memory.peak_reserved_bytes if memory else None,
            "peak_device_bytes_at_max": memory.peak_device_bytes if memory else None,
            "peak_moment_at_max": memory.peak_moment if memory else None,
            "headroom_bytes_at_max": edge.headroom_bytes if edge else None,
            "step_s_at_max": edge.step_s if edge else None,
            "tokens_per_s_at_max": edge.tokens_per_s if edge else None,
            "mfu_at_max": edge.mfu if edge else None,
            "shortfall_bytes": -beyond.headroom_bytes if beyond and beyond.headroom_bytes is not None else None,
            "limiting_part": beyond.largest_part if beyond else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Threshold:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a newer schema, a missing key, or a value of the wrong type.
        """
        require_schema(data, "kind", "threshold", "thresholds")
        with reading("threshold"):
            fields = {key: value for key, value in data.items() if key not in ("schema", "kind", *_DERIVED)}
            fields["run"] = run_from_json(data["run"])
            fields |= {name: _edge(data[name]) for name in ("at_max", "at_first_oom")}
            fields["advice"] = tuple(build(Change, change) for change in data["advice"])
            fields |= {name: tuple(data[name]) for name in ("assumptions", "unmodelled")}
            return build(cls, fields)


_DERIVED = (
    "method", "peak_allocated_bytes_at_max", "peak_reserved_bytes_at_max", "peak_device_bytes_at_max",
    "peak_moment_at_max", "headroom_bytes_at_max", "step_s_at_max", "tokens_per_s_at_max", "mfu_at_max",
    "shortfall_bytes", "limiting_part",
)  # fmt: skip


def _edge(data: Mapping[str, Any] | None) -> Edge | None:
    if data is None:
        return None
    memory = data["memory"]
    return build(Edge, dict(data) | {"memory": None if memory is None else build(Memory, memory)})


def thresholds_to_json(thresholds: Sequence[Threshold]) -> dict[str, Any]:
    """Return the document that `oom --format json` writes."""
    return {"thresholds": [threshold.to_json() for threshold in thresholds]}
