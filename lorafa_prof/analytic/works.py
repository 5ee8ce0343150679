"""The work of a step, operator by operator, in closed form: what is multiplied, and what memory is moved.

Products and fused attention have their shapes. Operations that only move memory have the bytes that they read and
write; of those that the tape does not note (small tables and masks, routing) there are none. Of the optimizer see
`optimizer_works`.
Layers that are alike are traced once and listed as often as there are: a step is as long as the simulation's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorafa_prof.analytic.arithmetic import Arithmetic, FusedAttention, Move, Product
from lorafa_prof.analytic.optimizer_works import optimizer_works
from lorafa_prof.analytic.sizes import Shape, Size, elements, product_of, symbol_values
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.timeline import repeats
from lorafa_prof.analytic.trace import trace_step
from lorafa_prof.specs import ITEMSIZE, RunSpec
from lorafa_prof.speed.work import AttentionProduct, MatrixProduct, OpWork

_FP32 = 4
#: Kernels of attention's backward (see `lorafa_prof.simulate.kernels.work.attention`).
_BACKWARD_KERNELS = {"flash": 3}
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")

Entry = Arithmetic | Move


class StepWorks:
    """The work of a run's step at any batch and length that its plan stands for.

    Args:
        run: the configuration; one sequence a batch is another step than several.

    Raises:
        UnsupportedError: what this engine does not model.
    """

    def __init__(self, run: RunSpec) -> None:
        trace = trace_step(run, moves=True)
        tape = trace.tape
        assert tape.moves is not None, "they are asked for"
        self.run = run
        self.optimizer = optimizer_works(run, trace.builder.held)
        """The work of the optimizer's step; empty where it is not known (`optimizer_works.is_listed`)."""
        self._rows = list(_repeated(tape, _in_order(tape.flops, tape.moves)))

    def at(self, bs: int, seq: int) -> list[OpWork]:
        """Return the work of forward, loss and backward, in order, of each micro-batch, and of the optimizer."""
        return self.passes(bs, seq) + self.optimizer

    def passes(self, bs: int, seq: int) -> list[OpWork]:
        """Return the work of forward, loss and backward, in order, of each micro-batch."""
        values = symbol_values(bs, seq)
        known: dict[int, list[OpWork]] = {}
        found: list[OpWork] = []
        for row in self._rows:
            works = known.get(id(row))  # of a layer that stands for others there is one row, as often as it is run
            if works is None:
                works = known[id(row)] = [replace(work, module=row.module) for work in _works(row.entry, values)]
            found += works
        return found * self.run.accumulation


def step_works(run: RunSpec) -> list[OpWork]:
    """Return the work of a run's step; see `StepWorks`."""
    return StepWorks(run).at(run.bs, run.seq)


@dataclass(frozen=True, slots=True)
class _Row:
    entry: Entry
    module: str


def _in_order(flops: Sequence[Arithmetic], moves: Sequence[Move]) -> list[Entry]:
    """Return both in the order in which they ran; scores made again are part of the attention before them."""
    entries: list[Entry] = []
    waiting = iter(moves)
    move = next(waiting, None)
    for number, one in enumerate(flops):
        while move is not None and move.arithmetic <= number:
            entries.append(move)
            move = next(waiting, None)
        if not one.kind.endswith("scores again"):
            entries.append(one)
    return [*entries, *([] if move is None else [move]), *waiting]


def _repeated(tape: Tape, entries: Sequence[Entry]) -> Iterator[_Row]:
    """Yield the rows of all layers: a layer that stands for others is followed by these, by their numbers."""
    ranges = repeats(tape)
    number = 0
    while number < len(entries):
        here = next((r for r in ranges if r[0] < entries[number].position <= r[1]), None)
        if here is None:
            yield _Row(entries[number], entries[number].module)
            number += 1
            continue
        end = number
        while end < len(entries) and here[0] < entries[end].position <= here[1]:
            end += 1
        layer = [_Row(entry, _LAYER.sub("*", entry.module)) for entry in entries[number:end]]
        for _ in range(here[2] + 1):
            yield from layer
        number = end


def _works(entry: Entry, values: Mapping[str, Any]) -> Iterator[OpWork]:
    if isinstance(entry, Move):
        yield _moved(entry, values)
        return
    phase = _phase(entry.phase, entry.module)
    if isinstance(entry.of, FusedAttention):
        yield _attended(entry.of, phase, entry.module, values)
        return
    assert entry.of is not None, "whatever computes says what it is"
    for product in _chunks(entry.of, values):
        yield _multiplied(product, phase, entry.module, values)


def _chunks(of: Product, values: Mapping[str, Any]) -> Iterator[Product]:
    """Yield the products of a product in chunks: as many whole ones as there are, and what is left."""
    if not of.chunk:
        yield of
        return
    over_k = any(isinstance(dim, str) for dim in of.k)
    everything, chunk = (_size(elements(shape), values) for shape in (of.k if over_k else of.m, of.chunk))
    for begin in range(0, everything, chunk):
        part: Shape = (min(chunk, everything - begin),)
        yield of._replace(chunk=(), k=part) if over_k else of._replace(chunk=(), m=part)


def _phase(phase: str, module: str) -> str:
    return "loss" if module == "loss" and phase == "forward" else phase


def _size(size: Size, values: Mapping[str, Any]) -> int:
    return size[0] * int(product_of(size[1], values))


def _sum(sizes: Iterable[Size], values: Mapping[str, Any]) -> int:
    return sum(_size(size, values) for size in sizes)


def _moved(move: Move, values: Mapping[str, Any]) -> OpWork:
    return OpWork(
        op=move.op, kind="memory", phase=_phase(move.phase, move.module), module=move.module, dtype=move.dtype,
        flops=0, read_bytes=_sum(move.read, values), written_bytes=_sum(move.written, values), waits=move.waits,
    )  # fmt: skip


def _multiplied(of: Product, phase: str, module: str, values: Mapping[str, Any]) -> OpWork:
    def number(shape: Shape) -> int:
        return _size(elements(shape), values)

    batch, m, k, n = map(number, (of.batch, of.m, of.k, of.n))
    size = ITEMSIZE[of.dtype]
    if of.groups:
        return _grouped(of, (m, k, n), phase, module)
    added = number(of.added) if of.added else 0
    result = ITEMSIZE["int32" if of.dtype == "int8" else of.dtype]  # products of integers are added up in 32 bits
    return OpWork(
        op=("aten.bmm" if of.batch else "aten.addmm" if of.added else "aten.mm"), kind="matmul", phase=phase,
        module=module, dtype=of.dtype, flops=2 * batch * m * k * n,
        read_bytes=(batch * (m * k + k * n) + added) * size, written_bytes=batch * m * n * result,
        product=MatrixProduct(batch=batch, m=m, n=n, k=k),
    )  # fmt: skip


def _grouped(of: Product, dims: tuple[int, int, int], phase: str, module: str) -> OpWork:
    """Return the work of a product of rows by each its group's matrix, or of sums over the rows of each group.

    Of groups that are not even the average, rounded up, is the shape, as in the simulation. The kernel that sets up the
    groups comes first.
    """
    (m, k, n), groups, size = dims, of.groups, ITEMSIZE[of.dtype]
    over_rows = any(isinstance(dim, str) for dim in of.k)
    if over_rows:
        shape = MatrixProduct(batch=groups, m=m, n=n, k=-(-k // groups))
        read, written = m * k + k * n, groups * m * n
    else:
        shape = MatrixProduct(batch=groups, m=-(-m // groups), n=n, k=k)
        read, written = m * k + groups * k * n, m * n
    return OpWork(
        op="aten._grouped_mm", kind="matmul", phase=phase, module=module, dtype=of.dtype, flops=2 * m * k * n,
        read_bytes=read * size + groups * 4, written_bytes=written * size, product=shape, kernels=2,
    )  # fmt: skip


def _attended(of: FusedAttention, phase: str, module: str, values: Mapping[str, Any]) -> OpWork:
    """Return the work of a fused kernel: each tensor once, and in flash's backward what is summed up in fp32."""
    bs, seq, size = int(values["b"]), int(values["s"]), ITEMSIZE[of.dtype]
    (heads, key_heads), (width, value_width) = of.heads, of.widths
    shape = AttentionProduct(
        batch=bs, heads=heads, key_heads=key_heads, queries=seq, keys=seq, width=width, value_width=value_width,
        causal=of.causal, backward=of.backward,
    )  # fmt: skip
    given = bs * seq * (heads * width + key_heads * (width + value_width)) * size
    out = bs * seq * heads * value_width * size
    lse = bs * heads * int(values["s" if of.kernel == "flash" else "E"]) * _FP32
    read, written = given, out + lse
    if of.backward:
        inside = 0
        if of.kernel == "flash":
            step = 32 if width <= 128 else 64
            inside = bs * int(values["S"]) * heads * (1 + -(-width // step) * step) * _FP32
        read, written = given + 2 * out + lse + inside, given + inside
    return OpWork(
        op=f"{of.kernel} attention{' backward' if of.backward else ''}", kind="attention", phase=phase, module=module,
        dtype=of.dtype, flops=shape.flops, read_bytes=read, written_bytes=written, attention=shape,
        kernels=_BACKWARD_KERNELS.get(of.kernel, 1) if of.backward else 1,
    )  # fmt: skip
