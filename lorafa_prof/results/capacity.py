"""What so many cards of one kind can train with one method, and how fast, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorafa_prof.results.figures import SCHEMA
from lorafa_prof.results.plain import plain, run_to_json
from lorafa_prof.specs import RunSpec


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One batch, and what becomes of it."""

    bs: int
    """Sequences a micro-batch, on each card."""
    step_s: float
    tokens_per_s: float
    """Of all cards together."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """One method on so many cards: the batch that trains fastest among those that fit."""

    device: str
    gpus: int
    run: RunSpec
    """With the batch of the best throughput, where there is one; else as it was asked for."""
    max_bs: int | None
    """Largest batch that fits each card; 0: none does; None: what is asked for is refused."""
    headroom_bytes: int | None = None
    """Left on each card at that batch."""
    best: Tried | None = None
    tried: tuple[Tried, ...] = ()
    """All batches that were timed, smallest first."""
    mfu: float | None = None
    """Of the best: what the method needs over time and peak, each card's."""
    scaling: float | None = None
    """Tokens per second over those of one card times as many, where one card has its best too."""
    epoch_s: float | None = None
    cost: float | None = None
    """Of the epoch: card-hours times the price of one."""
    why_not: str | None = None
    """Why there is no time, or no batch."""
    assumptions: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.run.method.name

    def to_json(self) -> dict[str, Any]:
        """Return plain data, the figures of the best batch beside it by names of their own."""
        data: dict[str, Any] = {"schema": SCHEMA, "kind": "capacity"} | plain(self)
        best = self.best
        return data | {
            "run": run_to_json(self.run),
            "method": self.method,
            "bs": best.bs if best else None,
            "step_s": best.step_s if best else None,
            "tokens_per_s": best.tokens_per_s if best else None,
        }


def capacities_to_json(capacities: Sequence[Capacity]) -> dict[str, Any]:
    """Return the document that `capacity --format json` prints."""
    return {"capacities": [each.to_json() for each in capacities]}
