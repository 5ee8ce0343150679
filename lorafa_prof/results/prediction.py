"""What a predicting engine answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Ledger
from lorafa_prof.results.figures import SCHEMA, Memory, Throughput
from lorafa_prof.results.lengths import BatchLengths
from lorafa_prof.results.plain import (
    build,
    ledger_from_json,
    ledger_to_json,
    of_newer,
    plain,
    reading,
    run_from_json,
    run_to_json,
)
from lorafa_prof.specs import LARGEST_BATCH, RunSpec

#: No larger batch is looked for, by engine: where that one fits, nobody knows where it ends.
LARGEST_SEARCHED = {"analytic": LARGEST_BATCH, "simulate": 2**16}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a run fits on one device."""

    device: str
    capacity_bytes: int
    """What torch sees of the card's memory."""
    context_bytes: int | None
    """CUDA context and libraries on that card, counted in the verdict; None: not known, and so not counted."""
    fits: bool
    headroom_bytes: int
    """Capacity less the peak; negative where it does not fit."""
    max_bs: int | None
    """Largest batch that fits at this sequence length, at most `LARGEST_SEARCHED`; 0 where none does; None where it was
    not looked for."""
    oom: str | None = None
    """PyTorch's message, where the engine knows which allocation fails."""
    profile: str | None = None
    """Which profile of the device its times rest on, "default" or "measured"; None: no time was asked for."""
    step_s: float | None = None
    """Seconds of one step, whether or not it fits."""
    tokens_per_s: float | None = None
    mfu: float | None = None
    mfu_6n: float | None = None
    hfu: float | None = None
    time_by_kind: Mapping[str, float] | None = None
    """Seconds of the step that the device is busy with "matmul", "attention", "memory", or "waiting" for the host."""
    time_by_phase: Mapping[str, float] | None = None
    why_no_time: str | None = None
    """Why `step_s` is None though a time was asked for."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One engine's answer for one run."""

    engine: str
    run: RunSpec
    versions: Mapping[str, str]
    """Versions of the libraries that the figures are for."""
    memory: Memory
    throughput: Throughput
    parameters: Mapping[str, int]
    """"total" and "trainable" elements."""
    fit: tuple[Fit, ...] = ()
    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()
    ledger: Ledger | None = None
    """What is alive at the peak."""
    communication_bytes: Mapping[str, int] | None = None
    """What each GPU sends in a step, and receives as well, by kind ("all_gather", "reduce_scatter", "all_reduce",
    "broadcast"); None: a run on one GPU."""
    lengths: BatchLengths | None = None
    """The epoch of which the run is the largest batch; None: every batch is like the run."""

    @property
    def tokens(self) -> float:
        """Tokens of a step on one GPU, padding counted: of batches of different lengths the mean."""
        if self.lengths is None:
            return self.run.tokens
        return self.lengths.tokens_per_batch * self.run.accumulation

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        data = {
            "schema": SCHEMA,
            "engine": self.engine,
            "run": run_to_json(self.run),
            "versions": dict(self.versions),
            "memory": plain(self.memory),
            "throughput": plain(self.throughput),
            "parameters": dict(self.parameters),
            "fit": [plain(fit) for fit in self.fit],
            "assumptions": list(self.assumptions),
            "unmodelled": list(self.unmodelled),
            "communication_bytes": None if self.communication_bytes is None else dict(self.communication_bytes),
        }
        if self.lengths is not None:
            data["lengths"] = plain(self.lengths)
        if self.ledger is not None:
            data["ledger"] = ledger_to_json(self.ledger)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prediction:
        """Read what `to_json` wrote.

        Raises:
            BadInputError: a newer schema, a missing key, or a value of the wrong type.
        """
        schema = data.get("schema")
        if schema != SCHEMA:
            raise BadInputError(
                f"a prediction of schema {schema!r}; this version reads schema {SCHEMA}{of_newer(schema)}"
            )
        with reading("prediction"):
            ledger, lengths = data.get("ledger"), data.get("lengths")
            fields = {
                "engine": data["engine"],
                "run": run_from_json(data["run"]),
                "versions": data["versions"],
                "memory": build(Memory, data["memory"]),
                "throughput": build(Throughput, data["throughput"]),
                "parameters": data["parameters"],
                "fit": tuple(build(Fit, fit) for fit in data["fit"]),
                "assumptions": tuple(data["assumptions"]),
                "unmodelled": tuple(data["unmodelled"]),
                "ledger": None if ledger is None else ledger_from_json(ledger),
                "communication_bytes": data.get("communication_bytes"),
                "lengths": None if lengths is None else build(BatchLengths, lengths),
            }
            return build(cls, fields)


def predictions_to_json(predictions: list[Prediction]) -> str:
    """Return the document that `predict --format json` prints."""
    return json.dumps({"predictions": [p.to_json() for p in predictions]}, indent=2, allow_nan=False) + "\n"
