"""What FSDP2 makes and frees in a step, as torch's `fully_shard` orders it (torch/distributed/fsdp/_fully_shard).

Each transformer block is a unit, and what is left, the root, is another. A unit's weights are gathered into one buffer
and copied out of it, each to a tensor of its own:

- in the forward the buffer stays until the next unit has been gathered, the last one's until the forward is over;
- a block's gathered weights go after its forward, the root's stay until the backward is over;
- in the backward the next block is gathered (into its buffer) while one runs; its weights are copied out, and the
  buffer is freed, when the gradient of its output has come;
- when the gradient of a block's input is complete, its whole gradients are copied into a buffer and reduced into one
  tensor with this rank's shards of all of them. The buffer stays until the next block has come as far.

One rank alone copies its weights without a buffer between, and tells nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafa_prof.analytic.builder import BUFFERS, WEIGHTS, Builder, Held
from lorafa_prof.analytic.sharing import Alone
from lorafa_prof.analytic.sizes import rounded
from lorafa_prof.analytic.tensors import GRADIENTS, WORKSPACES, Parameter, Tensor
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.sharding import Collective, share_of
from lorafa_prof.specs import ITEMSIZE, RunSpec

#: The name of a parameter within a list of modules, and the path of the module in the list.
_IN_LIST = re.compile(r"(.+?\.\d+)\.")


def refuse_passes(run: RunSpec) -> None:
    """Refuse what has no closed form where parameters are sharded.

    Raises:
        UnsupportedError: micro-batches, between which gradients stay whole, or clipping by a norm of shards.
    """
    if run.shard in ("none", "ddp") or (run.accumulation == 1 and not run.clip):
        return
    elsewhere = "" if run.shard.startswith("zero") else "; --engine simulate has them"
    raise UnsupportedError(
        f"--accumulation and --clip have no closed form with --shard {run.shard}: leave them out{elsewhere}"
    )


def local(parameter: Parameter, gpus: int) -> Parameter:
    """Return the shard of a parameter that the first rank has: so many of its rows, the last shards being padded."""
    rows, *rest = parameter.shape
    assert isinstance(rows, int), "a parameter has a size"
    shape = (share_of(rows, gpus), *rest)
    made = Parameter(
        parameter.tape, parameter.name, shape, parameter.dtype, trained=parameter.requires_grad, kind=parameter.kind
    )  # fmt: skip
    made.packed = parameter.packed
    return made


@dataclass
class Unit:
    """Parameters that are gathered together, and what there is of them now."""

    path: str
    parameters: list[Parameter]
    count: int
    """How many alike units it stands for."""
    gpus: int
    buffer: Tensor | None = None
    gathered: list[Tensor] = field(default_factory=list)
    reduced: Tensor | None = None
    gathers: int = 0
    """How often it is gathered in a step."""
    is_done: bool = False
    """Its gradients have been reduced."""

    @property
    def trained(self) -> list[Parameter]:
        """The parameters that get a gradient."""
        return [p for p in self.parameters if p.requires_grad]

    def padded(self, parameter: Parameter) -> int:
        """Return the elements of a parameter with what its last rows are padded with."""
        return local(parameter, self.gpus).numel * self.gpus

    @property
    def whole_bytes(self) -> int:
        """All of its weights, gathered."""
        return sum(self.padded(p) * ITEMSIZE[p.dtype] for p in self.parameters)

    @property
    def reduced_elements(self) -> int:
        """The elements of the trained weights, gathered."""
        return sum(self.padded(p) for p in self.trained)


class Fsdp(Alone):
    """FSDP2 around a model whose step is traced; each method is called where torch's hooks run."""

    assumptions: tuple[str, ...] = ("torch's fully_shard with its defaults, each transformer block a unit of its own",)

    def __init__(self, builder: Builder, run: RunSpec) -> None:
        super().__init__(builder, run)
        builder.units = self
        self.root = Unit("", [], 1, run.gpus)
        self.blocks: dict[str, Unit] = {}
        """By path, in the order of their forwards."""
        self._last_buffer: Tensor | None = None
        self._reducing: Tensor | None = None
        self._waiting: list[str] = []
        self._split(builder.held)

    # -- units ------------------------------------------------------------------------------------------------------

    def _split(self, all_held: Sequence[Held]) -> None:
        """Deal the parameters out to units: of a module in a list of modules the outermost such is one."""
        for held in all_held:
            if not self.is_sharded(held.parameter):
                continue
            found = _IN_LIST.match(held.parameter.name)
            unit = self.root
            if found is not None:
                unit = self.blocks.setdefault(found[1], Unit(found[1], [], held.count, self.gpus))
            unit.parameters.append(held.parameter)

    def is_sharded(self, parameter: Parameter) -> bool:
        """Say whether each GPU has a part of it."""
        return parameter.kind != BUFFERS

    def held(self) -> list[Held]:
        """See `Alone.held`."""
        return [Held(local(h.parameter, self.gpus), h.count) if self.is_sharded(h.parameter) else h for h in self.whole]

    @property
    def units(self) -> list[Unit]:
        """All of them, the root first."""
        return [self.root, *self.blocks.values()]

    def collectives(self) -> list[Collective]:
        """Return what all ranks tell each other in a step."""
        found: list[Collective] = []
        if self.gpus == 1:
            return found
        for unit in self.units:
            found.append(("all_gather", unit.gathers * unit.count * unit.whole_bytes))
            if unit.trained:
                itemsize = ITEMSIZE[unit.trained[0].dtype]
                found.append(("reduce_scatter", unit.count * unit.reduced_elements * itemsize))
        return found

    def gradient_bytes(self) -> int:
        """Return what the reduced gradients take: one tensor a unit."""
        return sum(
            rounded(unit.reduced_elements // self.gpus * ITEMSIZE[unit.trained[0].dtype]) * unit.count
            for unit in self.units
            if unit.trained
        )

    # -- forward ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The model's forward begins."""
        self._gather(self.root)
        self._copy_out(self.root)

    def enter(self, path: str) -> None:
        """A block's forward begins."""
        unit = self.blocks[path]
        self._gather(unit)
        self._last_buffer = None
        self._copy_out(unit)

    def leave(self, path: str) -> None:
        """A block's forward is over."""
        self.blocks[path].gathered = []
        self._waiting.append(path)

    def end_forward(self) -> None:
        """The model's forward is over, with the loss."""
        self._last_buffer = None

    # -- backward -----------------------------------------------------------------------------------------------------

    def begin_backward(self) -> None:
        """The gradient of the loss has come."""
        self._prefetch()

    def output_complete(self, path: str) -> None:
        """The gradient of a block's output is complete."""
        unit = self.blocks[path]
        if unit.buffer is None:
            self._gather(unit)
        self._copy_out(unit)
        self._last_buffer = None
        if self._waiting and self._waiting[-1] == path:
            self._waiting.pop()
        self._prefetch()

    def input_complete(self, path: str) -> None:
        """The gradient of a block's input is complete."""
        self._reduce(self.blocks[path])

    def end_backward(self) -> None:
        """The backward is over: the root's turn, and that of blocks whose inputs have no gradient."""
        for unit in self.units:
            if not unit.is_done:
                self._reduce(unit)
        self._reducing = None

    # -- what that is -------------------------------------------------------------------------------------------------

    def _new(self, unit: Unit, name: str, elements: int, dtype: str, category: str) -> Tensor:
        made = self.tape.new(name, (elements,), dtype, category)
        self.tape.items[-1].module = unit.path
        return made

    def _gather(self, unit: Unit) -> None:
        unit.gathers += 1
        if self.gpus > 1:
            unit.buffer = self._new(unit, "all-gather buffer", unit.whole_bytes, "uint8", WORKSPACES)

    def _copy_out(self, unit: Unit) -> None:
        for p in unit.parameters:
            module, _, leaf = p.name.rpartition(".")
            unit.gathered.append(self._new(unit, f"gathered {leaf}", unit.padded(p), p.dtype, WORKSPACES))
            self.tape.items[-1].module = module
        self._last_buffer, unit.buffer = unit.buffer, None

    def _prefetch(self) -> None:
        if self._waiting:
            self._gather(self.blocks[self._waiting[-1]])

    def _reduce(self, unit: Unit) -> None:
        unit.is_done = True
        unit.gathered, unit.buffer = [], None
        self._reducing = None
        if not unit.trained:
            return
        dtype = unit.trained[0].dtype
        self._reducing = self._new(unit, "reduce-scatter buffer", unit.reduced_elements, dtype, WORKSPACES)
        for parameter in unit.trained:
            parameter.grad = None
        unit.reduced = self._new(unit, "gradients", unit.reduced_elements // self.gpus, dtype, GRADIENTS)


class FsdpGradOp(Fsdp):
    """FSDP2 whose blocks stay gathered from their forward to their backward (`reshard_after_forward=False`)."""

    assumptions = ("torch's fully_shard with reshard_after_forward=False, each transformer block a unit of its own",)

    def leave(self, path: str) -> None:
        """See `Fsdp.leave`."""

    def begin_backward(self) -> None:
        """See `Fsdp.begin_backward`."""

    def output_complete(self, path: str) -> None:
        """See `Fsdp.output_complete`."""
        self._last_buffer = None


class Frozen(Fsdp):
    """Only base weights that are frozen are sharded, as the LoRA-FA paper combines sharding and adapters (section E.4).

    Adapters, their gradients and states are whole on each GPU; gradients are reduced to all, in their own place.
    """

    assumptions = (
        "frozen base weights gathered in the order of torch's fully_shard, each transformer block a unit",
        "gradients of what is whole averaged one by one, in their place, when the backward is over",
    )

    def is_sharded(self, parameter: Parameter) -> bool:
        """See `Fsdp.is_sharded`."""
        return parameter.kind == WEIGHTS and not parameter.requires_grad

    def gradient_bytes(self) -> int:
        """See `Alone.gradient_bytes`."""
        return Alone.gradient_bytes(self)

    def collectives(self) -> list[Collective]:
        """See `Alone.collectives`."""
        trained = sum(int(h.parameter.size[0]) * h.count for h in self.whole if h.parameter.requires_grad)
        return [*super().collectives(), ("all_reduce", trained)]
