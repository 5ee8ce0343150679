"""From the times of steps to a rate: medians, spread, and how much of the card's arithmetic they use."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorafa_prof.results import Spread, StepTime, Throughput


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step has to do: operations and tokens."""

    tokens: int | None
    model_flops: int | None
    executed_flops: int | None
    model_flops_6n: int | None
    model_flops_causal: int | None = None
    executed_flops_causal: int | None = None

    @classmethod
    def of_tokens(cls, tokens: int | None) -> Work:
        """Return the work of a step of which no more than its tokens is known."""
        return cls(tokens=tokens, model_flops=None, executed_flops=None, model_flops_6n=None)


def spread(steps: Sequence[StepTime]) -> Spread | None:
    """Return how the time of a step varies; None without steps."""
    times = sorted(step.step_s for step in steps)
    if not times:
        return None
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Spread(least_s=times[0], quarter_s=low, median_s=middle, three_quarters_s=high, most_s=times[-1])


def throughput(steps: Sequence[StepTime], work: Work, peak_flops: float | None) -> Throughput:
    """Return the rates of the median step.

    Args:
        steps: the timed steps; where there are none, only operations are known.
        work: of one step.
        peak_flops: dense peak of the device in the dtype of the matrix products, FLOP/s; None where it is not known.
    """
    times = spread(steps)
    seconds = None if times is None else times.median_s
    rates = Throughput(
        step_s=seconds,
        tokens_per_s=work.tokens / seconds if seconds and work.tokens is not None else None,
        model_flops=work.model_flops,
        executed_flops=work.executed_flops,
        model_flops_6n=work.model_flops_6n,
        model_flops_causal=work.model_flops_causal,
        executed_flops_causal=work.executed_flops_causal,
    )
    return with_peak(rates, peak_flops)


def with_peak(rates: Throughput, peak_flops: float | None) -> Throughput:
    """Return the rates with the share of the device's peak that they are; without one where it is not known."""

    def used(flops: int | None) -> float | None:
        return None if flops is None or not rates.step_s or not peak_flops else flops / rates.step_s / peak_flops

    return replace(
        rates, mfu=used(rates.model_flops), mfu_6n=used(rates.model_flops_6n), hfu=used(rates.executed_flops)
    )
