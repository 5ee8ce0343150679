"""A grid of runs of models of full size: every method on every architecture, and how far two engines are apart there.

Six options have two to four values each. A cell (one method on one architecture) is given one row of a covering design
of twelve rows, in which every value of an option meets every value of each other one. Rows go round, so that each
method, over the architectures, and each architecture, over the methods, meets the whole design.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.simulate.engine import Simulation, simulate
from lorafa_prof.specs import METHODS, MethodSpec, RunSpec
from lorafa_prof.units import allocated

#: The smallest model of the catalog of each architecture; T5's second one, for its tensors are of the sizes whose
#: blocks the allocator does not split.
MODELS = (
    "gpt2", "santacoder-1.1b", "llama3.2-1b", "mistral-7b", "mixtral-8x7b", "qwen2.5-0.5b", "qwen3-0.6b", "gemma2-2b",
    "gemma3-1b", "phi-4", "powerlm-3b", "deepseek-v2-lite", "roberta-base", "t5-base",
)  # fmt: skip

#: What each number of `DESIGN` stands for.
VALUES: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"dtype": "bf16"}, {"dtype": "fp16"}, {"dtype": "fp32"}, {"dtype": "fp32", "amp": True}),
    ({"checkpointing": "none"}, {"checkpointing": "full"}, {"checkpointing": "selective"}),
    ({"bs": 1}, {"bs": 4}, {"bs": 16}),
    ({"seq": 200}, {"seq": 512}),
    ({"rank": 8}, {"rank": 64}),
    ({"attn": "sdpa"}, {"attn": "eager"}),
)
DESIGN = (
    (0, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 2, 2, 1, 1, 1), (1, 0, 1, 0, 0, 1), (1, 1, 2, 0, 0, 1),
    (1, 2, 0, 1, 1, 0), (2, 0, 2, 0, 1, 0), (2, 1, 0, 1, 1, 1), (2, 2, 1, 1, 0, 0), (3, 0, 0, 1, 0, 1),
    (3, 1, 1, 1, 1, 0), (3, 2, 2, 0, 1, 1),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One run of the grid."""

    model: str
    method: str
    row: int
    """Of the design."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of this point, by name."""
        found: dict[str, Any] = {}
        for values, number in zip(VALUES, DESIGN[self.row], strict=True):
            found |= values[number]
        return found

    @property
    def run(self) -> RunSpec:
        """The run."""
        options = self.options
        return RunSpec(
            model=load_model(self.model), method=MethodSpec(name=self.method, rank=options.pop("rank")), **options
        )

    def __str__(self) -> str:
        said = " ".join("amp" if key == "amp" else f"{value}" if isinstance(value, str) else f"{key}={value}"
                        for key, value in self.options.items())  # fmt: skip
        return f"{self.model} {self.method}: {said}"


def points(cell: tuple[str, str], shift: int = 0) -> Iterator[Point]:
    """Yield the rows of the design in the order in which a cell asks for them."""
    model, method = cell
    first = MODELS.index(model) + METHODS.index(method) + shift
    for row in range(len(DESIGN)):
        yield Point(model, method, (first + row) % len(DESIGN))


def taken(cell: tuple[str, str], shift: int = 0) -> Point | str:
    """Return the first point of a cell that closed forms take, or why they take none."""
    refusals = []
    for point in points(cell, shift):
        refusal = _refusal(point)
        if refusal is None:
            return point
        refusals.append(refusal)
    return refusals[0]


def _refusal(point: Point) -> str | None:
    try:
        predict(point.run)
    except LorafaProfError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Found:
    """What both engines say of a point, bytes."""

    point: Point
    formed_tensors: int
    """Peak allocated by closed forms, tensor by tensor."""
    formed: int
    """The same with what blocks have beyond their tensors."""
    tensors: int
    """Peak of the simulated step's storages, each rounded up to 512 B."""
    simulated: int
    """Peak allocated as the simulated allocator counts it: blocks."""
    formed_at: str
    simulated_at: str

    @property
    def error(self) -> float:
        """By what share of it closed forms miss the simulated peak."""
        return self.formed / self.simulated - 1

    @property
    def error_of_tensors(self) -> float:
        """The same of tensors alone, on both sides."""
        return self.formed_tensors / self.tensors - 1


def compare(point: Point) -> Found:
    """Ask both engines."""
    formed = predict(point.run).memory
    simulation = simulate(point.run)
    memory = simulation.memory()
    assert formed.peak_allocated_bytes is not None
    assert formed.peak_blocks_bytes is not None
    assert memory.peak_allocated_bytes is not None
    return Found(
        point, formed.peak_allocated_bytes, formed.peak_blocks_bytes, tensor_bytes(simulation),
        memory.peak_allocated_bytes, formed.peak_moment, memory.peak_moment,
    )  # fmt: skip


def tensor_bytes(simulation: Simulation) -> int:
    """Return the most that the storages of a simulated step take, each rounded up to 512 B."""
    trace = simulation.trace
    sizes = [allocated(block.nbytes) for block in trace.blocks]
    live = top = 0
    for event in trace.events:
        live += sizes[event] if event >= 0 else -sizes[~event]
        top = max(top, live)
    return top
