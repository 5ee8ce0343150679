"""What follows from the observation of a script: rates, and promises that its model makes without being asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lorafa_prof.measure.script.roots import inner_of
from lorafa_prof.measure.timing import Work, throughput
from lorafa_prof.measure.trace import StepTrace
from lorafa_prof.results import Promise, StepTime, Throughput
from lorafa_prof.workload.naming import counted_parameters, table_elements


def rates_of(steps: Sequence[StepTime], root: torch.nn.Module | None) -> Throughput:
    """Return the rates of a script's steps; operations are not counted, for that takes a step of its own.

    Where steps have different numbers of tokens, the rate is that of all of them together.
    """
    counts = {step.tokens for step in steps}
    if len(counts) == 1:
        [tokens] = counts
        flops = None if tokens is None or root is None else _flops_6n(inner_of(root), tokens)
        return throughput(steps, replace(Work.of_tokens(tokens), model_flops_6n=flops), None)
    rates = throughput(steps, Work.of_tokens(None), None)
    if None in counts:
        return rates
    total = sum(step.tokens or 0 for step in steps)
    return replace(rates, tokens_per_s=total / sum(step.step_s for step in steps))


def _flops_6n(model: Any, tokens: int) -> int | None:
    """Return what the 6 N convention makes of a step; None where the model does not tell its embedding table."""
    if not hasattr(model, "get_input_embeddings"):
        return None
    return 6 * (counted_parameters(model)["total"] - table_elements(model)) * tokens


def promises_of(
    model: Any, optimizer: torch.optim.Optimizer, before: Sequence[Promise], trace: StepTrace | None
) -> tuple[tuple[Promise, ...], str]:
    """Return what a PEFT model keeps and does not keep, and what there is to say where nothing can be judged."""
    if not hasattr(model, "peft_config") or not {"peft", "transformers"} <= set(sys.modules):
        return (), "promises: the model is none of PEFT's, and without a description of the run nothing is promised"
    from lorafa_prof.measure.promises import check_promises, checked_twice

    found = check_promises(model, optimizer, trace=trace)
    return (checked_twice(before, found) if before else found), ""
