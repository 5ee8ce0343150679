"""What a block is for, on traces made by hand: as the CPU tells them, and as CUDA does, which names no operator."""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.ledger import Category
from lorafa_prof.measure.attribution import Attribution, blocks_of
from lorafa_prof.measure.names import Name
from lorafa_prof.measure.trace import BaseBlock, Event, Levels, Mark, Reading, StepTrace

W, A, G = Category.WEIGHTS, Category.ACTIVATIONS, Category.GRADIENTS
L, T, S = Category.LOGITS, Category.TEMPORARIES, Category.WORKSPACES
O = Category.OPTIMIZER  # noqa: E741
LOGITS = 4096


def traced(base: dict[int, BaseBlock], script: list[tuple[Any, ...]], granule: int, unsplit: int = 0) -> StepTrace:
    """A trace of ("mark", phase, module), ("new", address, bytes, operator, call) and ("free", address, call).

    Its readings are those of an allocator that rounds up to the granule; `unsplit` bytes more in the last forward mark,
    as where the rest of a block is too small to be split off.
    """
    events: list[Event] = []
    marks: list[Mark] = []
    peaks: list[int] = []
    ends: list[int] = []
    sizes = {address: (block.requested, block.allocated) for address, block in base.items()}
    live = sum(block.allocated for block in base.values())
    for kind, *rest in script:
        if kind == "mark":
            marks.append(Mark(len(events), *rest))
            peaks.append(live)
            ends.append(live)
            continue
        if kind == "new":
            address, size, operator, call = (*rest, "", 0)[:4] if len(rest) < 4 else rest
            sizes[address] = (size, -(-size // granule) * granule)
            events.append(Event(size, address, operator, call))
            live += sizes[address][1]
        else:
            address, call = (*rest, 0)[:2]
            size, rounded = sizes.pop(address)
            events.append(Event(-size, address, "", call))
            live -= rounded
        peaks[-1], ends[-1] = max(peaks[-1], live), live
    readings = [Reading(Levels(peak, peak + unsplit), Levels(end, end)) for peak, end in zip(peaks, ends, strict=True)]
    return StepTrace(base, events, marks, readings)


def name(category: Category, tensor: str, module: str = "layers.0") -> Name:
    return Name(category, module, tensor, (2, 3), "float32", 600)


BASE = {1: BaseBlock(1000, 1024), 2: BaseBlock(8_519_680, 8_519_680), 3: BaseBlock(100, 512)}
BEFORE = {1: name(W, "weight"), 3: name(A, "batch.labels", "batch")}
SCRIPT: list[tuple[Any, ...]] = [
    ("mark", "forward", "layers.0"),
    ("new", 10, 700, "mul", 1),  # saved until the backward
    ("new", 11, 300, "mm", 2),  # come and gone within one call
    ("free", 11, 2),
    ("new", 12, 300, "cat", 3),  # gone before the forward ends
    ("free", 12, 4),
    ("mark", "forward", "lm_head"),
    ("new", 20, LOGITS, "mm", 5),
    ("mark", "forward", "loss"),
    ("new", 21, 4, "nll", 6),
    ("mark", "backward", "loss"),
    ("new", 22, LOGITS, "nll_backward", 7),
    ("mark", "backward", "layers.0"),
    ("free", 3),  # what was there before may go
    ("free", 22),
    ("new", 30, 600, "mm", 8),  # a gradient
    ("new", 31, 50, "mm", 9),
    ("free", 31),
    ("free", 20),
    ("free", 10),
    ("mark", "optimizer", ""),
    ("new", 40, 600, "zeros_like", 10),  # a state
    ("new", 41, 600, "sqrt", 11),
    ("free", 41),
    ("mark", "zero_grad", ""),
    ("free", 30),
    ("free", 21),
    ("mark", "end", ""),
]
GRADIENTS, STATES = {30: name(G, "gradient of weight")}, {40: name(O, "exp_avg of weight")}


def attribution(script: list[tuple[Any, ...]] = SCRIPT, granule: int = 512, unsplit: int = 0) -> Attribution:
    trace = traced(BASE, script, granule, unsplit)
    return Attribution(trace, BEFORE, GRADIENTS, STATES, frozenset({LOGITS}), "lm_head", granule)


def without_operators(script: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """As CUDA's allocator tells it."""
    return [entry[:3] if entry[0] == "new" else entry[:2] if entry[0] == "free" else entry for entry in script]


def categories(found: Attribution) -> dict[int, Category]:
    blocks, _ = blocks_of(found.trace)
    return {block.address: found.name_of(block).category for block in blocks}


def test_each_block_has_the_purpose_that_its_life_tells() -> None:
    """By when it comes and goes, and who is at work."""
    expected = {10: A, 11: S, 12: T, 20: L, 21: L, 22: L, 30: G, 31: T, 40: O, 41: T}
    assert categories(attribution()) == expected


def test_without_operators_a_kernel_s_workspace_is_a_temporary() -> None:
    """CUDA's allocator does not tell within which call a block came: all else is the same."""
    expected = {10: A, 11: T, 12: T, 20: L, 21: L, 22: L, 30: G, 31: T, 40: O, 41: T}
    assert categories(attribution(without_operators(SCRIPT))) == expected


@pytest.mark.parametrize("script", [SCRIPT, without_operators(SCRIPT)], ids=["cpu", "cuda"])
def test_the_ledger_at_the_peak(script: list[tuple[Any, ...]]) -> None:
    """When the loss's backward has made the gradient of the logits: each block rounded up to 512 bytes."""
    ledger = attribution(script).ledger()
    assert ledger.moment == "loss backward: loss"
    assert {category: total for category, total in ledger.parts().items() if total} == {
        W: 1024, A: 1024 + 512, L: 4096 + 512 + 4096, S: 8_519_680,
    }  # fmt: skip
    assert ledger.total() == attribution(script).trace.peak


def test_what_is_there_without_a_name_is_kept_by_libraries() -> None:
    """cuBLAS's workspace is a block of the base that no tensor of the run has."""
    (item,) = (item for item in attribution().ledger().items if item.category is S)
    assert (item.tensor, item.nbytes) == ("kept by libraries", 8_519_680)


def test_what_was_there_before_may_go() -> None:
    """Past its end it is not counted: here at a later peak, in the optimizer's step."""
    large = [("new", 41, 5_000_000, "sqrt", 11) if entry[:2] == ("new", 41) else entry for entry in SCRIPT]
    ledger = attribution(large).ledger()
    assert ledger.moment == "optimizer step"
    assert not any(item.tensor == "batch.labels" for item in ledger.items)
    assert ledger.parts()[G] == ledger.parts()[O] == 1024  # 600 bytes each, rounded
    assert ledger.total() == attribution(large).trace.peak


def test_the_size_of_the_logits_alone_makes_none() -> None:
    """The root of a moment may be as large, where the optimizer takes all parameters at once."""
    same = [("new", 41, LOGITS, "sqrt", 11) if entry[:2] == ("new", 41) else entry for entry in SCRIPT]
    assert categories(attribution(same))[41] is T


def test_unsplit_remainders_are_a_row_of_their_own() -> None:
    """What the allocator counts beyond its blocks is neither lost nor given to anybody."""
    found = attribution(unsplit=1536)
    (item,) = (item for item in found.ledger().items if item.tensor == "unsplit remainders of blocks")
    assert (item.category, item.nbytes) == (T, 1536)
    assert found.ledger().total() == found.trace.peak
    assert not any(item.tensor.startswith("unsplit") for item in attribution().ledger().items)


def test_saved_activations_and_gradients() -> None:
    """At the end of the forward, unrounded: what it made and left for the backward, which does not keep the loss.

    Gradients when the backward is over, rounded.
    """
    assert attribution().saved_activation_bytes() == 700 + LOGITS
    assert attribution().gradient_bytes() == 1024


def test_an_address_that_is_used_again_is_another_block() -> None:
    """A gradient's address may have been an activation's before: only the one that is there at the end is named."""
    script = [("mark", "forward", "m"), ("new", 30, 64), ("free", 30), ("new", 30, 80), *SCRIPT[1:]]
    script = [entry for entry in script if entry != ("free", 10)]
    script.insert(script.index(("new", 30, 600, "mm", 8)), ("free", 30))
    found = attribution(script)
    blocks, _ = blocks_of(found.trace)
    assert [(b.requested, found.name_of(b).category) for b in blocks if b.address == 30] == [(64, T), (80, A), (600, G)]


def test_what_a_recomputation_makes_again_is_an_activation_until_it_ends() -> None:
    """Checkpointing: what it leaves for the backward is saved, not what goes within it or before the next birth."""
    script: list[tuple[Any, ...]] = [
        ("mark", "forward", "layers.0"),
        ("mark", "backward", ""),
        ("mark", "recompute", "layers.0"),
        ("new", 50, 600),
        ("mark", "recompute", "layers.0.mlp"),
        ("new", 51, 600),
        ("new", 52, 600),
        ("free", 52),
        ("new", 54, 600),
        ("mark", "backward", "layers.0"),
        ("free", 54),  # held by the exception that ends a recomputation
        ("new", 55, 600),
        ("free", 50),
        ("free", 51),
        ("free", 55),
        ("mark", "recompute", "layers.1"),
        ("new", 53, 600),
        ("mark", "backward", "layers.1"),
        ("new", 55, 600),
        ("free", 53),
        ("free", 55),
        ("mark", "optimizer", ""),
        ("mark", "end", ""),
    ]
    assert categories(attribution(script)) == {50: A, 51: A, 52: T, 53: A, 54: T, 55: T}


def test_alike_layers_are_one_item() -> None:
    """With the layer's number as a star, and a count."""
    script: list[tuple[Any, ...]] = []
    for layer in range(3):
        script += [("mark", "forward", f"layers.{layer}.mlp"), ("new", 60 + layer, 600, "mul", layer + 1)]
    script += [("mark", "backward", ""), ("mark", "optimizer", ""), ("mark", "end", "")]
    (item,) = (i for i in attribution(script).ledger().items if i.tensor == "mul")
    assert (item.module, item.count, item.nbytes, item.formula) == ("layers.*.mlp", 3, 3 * 1024, "600")


def test_the_peak_is_looked_for_where_the_allocator_has_it() -> None:
    """Two blocks of 513 bytes take more than one of 1100, though fewer are asked for: rounding decides."""
    script: list[tuple[Any, ...]] = [
        ("mark", "forward", "a"),
        ("new", 70, 1100),
        ("free", 70),
        ("mark", "forward", "b"),
        ("new", 71, 513),
        ("new", 72, 513),
        ("free", 71),
        ("free", 72),
        ("mark", "backward", ""),
        ("mark", "optimizer", ""),
        ("mark", "end", ""),
    ]
    found = attribution(script)
    assert found.ledger().moment == "forward: b"
    assert found.ledger().total() == found.trace.peak == sum(b.allocated for b in BASE.values()) + 2048


def test_the_timeline_joins_marks_of_one_module() -> None:
    """A stretch has the most of its marks, and the end of the last."""
    found = attribution().trace
    stretches = [(s.phase, s.module) for s in found.stretches()]
    assert stretches == [
        ("forward", "layers.0"), ("forward", "lm_head"), ("forward", "loss"), ("backward", "loss"),
        ("backward", "layers.0"), ("optimizer", ""), ("zero_grad", ""), ("end", ""),
    ]  # fmt: skip
    names = [phase.phase for phase in found.phases()]
    assert names == ["forward", "loss", "backward", "optimizer step", "zero_grad"]
    assert max(phase.peak_allocated_bytes or 0 for phase in found.phases()) == found.peak
