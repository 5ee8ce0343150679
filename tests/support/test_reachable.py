"""What counts as held by an object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.reachable import storage_bytes

ELSEWHERE = torch.zeros(1000)


@dataclass
class Holder:
    inner: Any
    named: dict[str, Any] = field(default_factory=dict)

    def reads_a_global(self) -> torch.Tensor:
        return ELSEWHERE


def test_tensors_are_found_wherever_they_are_kept() -> None:
    """In attributes, containers and other tensors' attributes; what a method could look up is not held."""
    tensor = torch.zeros(4)
    tensor.note = [torch.zeros(8)]  # type: ignore[attr-defined]
    whole = torch.zeros(32)
    holder = Holder((tensor, Holder(whole[:2])), {"again": whole[2:], "self": None})
    holder.named["self"] = holder
    assert storage_bytes(holder, holder.inner) == 4 * (4 + 8 + 32)


def test_parameters_and_states_are_found() -> None:
    layer = torch.nn.Linear(3, 2)
    assert storage_bytes(layer) == 4 * (6 + 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert storage_bytes(optimizer) == 2 * 4 * (6 + 2)
