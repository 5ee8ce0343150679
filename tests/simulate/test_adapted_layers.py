"""Adapters in a share of the layers: closed forms and the real step on meta tensors say the same bytes.

Below the lowest adapted layer autograd keeps nothing and no backward runs; above it frozen layers without adapters pass
gradients on. With checkpointing the embedding's output requires gradients, and the backward goes all the way down.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.simulate.engine import predict as simulate
from tests.analytic.runs import run_of
from tests.simulate.test_against_analytic import FAMILIES, OPTIONS, closed_form, simulated

DEPTH = 10
#: The last few, the first few, a middle with more than four layers on either side, and without any order.
PATTERNS: dict[str, tuple[int, ...]] = {
    "last": tuple(range(5, 10)),
    "first": tuple(range(5)),
    "middle": (5, 6),
    "one": (9,),
    "scattered": (1, 2, 8),
}


def cases() -> list[Any]:
    """Every family, each with one pattern and one method a time; the whole product is left to the slow tests."""
    made = []
    for i, family in enumerate((*FAMILIES, "mixtral", "deepseek_v2-flash")):
        for j, method in enumerate(("lora", "lora-fa", "vera")):
            for k, (name, options) in enumerate(OPTIONS.items()):
                for n, (pattern, layers) in enumerate(PATTERNS.items()):
                    marks = () if j == i % 3 and k == (i // 3 + n) % 4 and n == i % 5 else pytest.mark.slow
                    case = f"{family}-{method}-{name}-{pattern}"
                    made.append(pytest.param(family, method, options, layers, id=case, marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options", "adapted"), cases())
def test_tiny_models(family: str, method: str, options: dict[str, Any], adapted: tuple[int, ...]) -> None:
    """With a vocabulary so large that the loss is the peak: part by part, and what the forward leaves."""
    experts = family in ("mixtral", "deepseek_v2-flash")
    run = run_of(
        family, method, layers=DEPTH, changes={"vocab_size": 6000}, optimizer="adamw", adapted=adapted,
        **{**options, **({"targets": ("qv",)} if experts else {})},
    )  # fmt: skip
    assert simulated(run)[0] == closed_form(run)
    assert simulate(run).memory.saved_activations_bytes == predict(run).memory.saved_activations_bytes
