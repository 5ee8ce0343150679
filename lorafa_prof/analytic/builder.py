"""Symbolic modules: the parameters of a model, their adapters, and how a module runs.

A family (`lorafa_prof.analytic.families`) builds its model from these as transformers builds the real one, under the
same module names. Layers of one kind are alike, so at most four of them are built and traced; `layers` says how many
real layers each stands for.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from lorafa_prof.analytic import ops, ops_quantized
from lorafa_prof.analytic.sizes import Shape
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Parameter, Tensor
from lorafa_prof.errors import BadInputError, UnknownNameError
from lorafa_prof.layers import nothing_there
from lorafa_prof.specs import Dtype, ModelSpec, Quantization, RunSpec

#: Layers traced for real where more are alike: the first and the last differ at their ends, and the two inner ones
#: give what each further layer adds.
TRACED_LAYERS = 4

WEIGHTS, ADAPTERS, BUFFERS = "weights", "adapters", "buffers"


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter or buffer of the model, and how many real tensors it stands for."""

    parameter: Parameter
    count: int


Forward = Callable[[Tensor], Tensor]
AdapterForward = Callable[[Tensor, Tensor], Tensor]
"""From the module's input and its base layer's result to the adapted result."""
MakeAdapter = Callable[["Builder", "Linear"], "AdapterForward | None"]
"""Adds an adapter to a layer and returns its forward; None: the layer runs as it is."""


class Units(Protocol):
    """Parts of the model that come and go as wholes: a part is named by the path of its module."""

    def enter(self, path: str) -> None:
        """Its forward begins."""

    def leave(self, path: str) -> None:
        """Its forward is over."""

    def output_complete(self, path: str) -> None:
        """The gradient of its output is complete."""

    def input_complete(self, path: str) -> None:
        """The gradient of its input is complete."""


class Builder:
    """Makes parameters and modules for one run, and keeps the inventory of what it made."""

    def __init__(self, run: RunSpec, tape: Tape, make_adapter: MakeAdapter | None) -> None:
        self.run, self.tape, self.make_adapter = run, tape, make_adapter
        self.spec: ModelSpec = run.spec
        self.held: list[Held] = []
        self.linears: list[Linear] = []
        self.adapted: list[Linear] = []
        """Linear layers that have an adapter."""
        self.assumptions: list[str] = []
        self.units: Units | None = None
        """Told where the step is, where the model's layers are gathered from several GPUs."""
        self.full = run.method.name == "full"
        self.wrapped = not self.full
        """Whether the model is one with adapters, in whose place something else may be done to the layers."""
        self.penalty: Callable[[Builder, Tensor], Tensor] | None = None
        self.stand_ins: list[Parameter] = []
        """Parameters of layers that are not built, with one use in their layer; named as those of the layer built."""
        self._path: list[str] = []
        self._count = 1

    # -- structure ------------------------------------------------------------------------------------------------

    @contextmanager
    def inside(self, name: str, count: int = 1) -> Iterator[None]:
        """Build what belongs to the submodule `name`, standing for `count` alike ones."""
        self._path.append(name)
        outer, self._count = self._count, self._count * count
        try:
            yield
        finally:
            self._path.pop()
            self._count = outer

    def layers(self, number: int, alike: bool = True, first: int = 0) -> list[tuple[int, int]]:
        """Return (index, how many real layers it stands for) of each layer to build out of `number` from `first` on.

        With more than four alike in a row, the first two and the last two are built, and the second stands for the rest
        too. Layers are not alike where a target names one of them by its number, nor are one with adapters and one
        without.
        """
        indices = range(first, first + number)
        named = any(part.isdecimal() for target in self.run.method.targets for part in target.split("."))
        if not alike or named:
            return [(index, 1) for index in indices]
        rows = (list(row) for _, row in itertools.groupby(indices, self.run.method.adapts))
        return [built for row in rows for built in _ends(row)]

    @property
    def path(self) -> str:
        """Full name of the module being built."""
        return ".".join(self._path)

    @property
    def multiplicity(self) -> int:
        """How many real modules the one being built stands for."""
        return self._count

    @contextmanager
    def at(self, path: str, count: int) -> Iterator[None]:
        """Build at the absolute `path` (empty for the model itself), whatever is being built now."""
        outer = self._path, self._count
        self._path, self._count = (path.split(".") if path else []), count
        try:
            yield
        finally:
            self._path, self._count = outer

    def finished(self, loss: Tensor) -> Tensor:
        """Return the loss with what the method adds to it, as the model's forward ends: its outputs are still there."""
        return loss if self.penalty is None else self.penalty(self, loss)

    # -- parameters -----------------------------------------------------------------------------------------------

    def parameter(
        self, name: str, shape: Shape, *, kind: str = WEIGHTS, trained: bool | None = None, dtype: str | None = None
    ) -> Parameter:
        """Add a parameter (or, with kind BUFFERS, a buffer) to the module being built."""
        trained = self.full and kind == WEIGHTS if trained is None else trained
        full_name = f"{self.path}.{name}" if self._path else name
        if dtype is None:
            dtype = self.run.dtype if kind == BUFFERS else prepared_dtype(self.run, full_name)
        made = Parameter(self.tape, full_name, shape, dtype, trained=trained, kind=kind)
        self.held.append(Held(made, self._count))
        return made

    def linear(
        self,
        name: str,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        role: str = "",
        head: bool = False,
        quantised: bool = True,
        tied_to: Parameter | None = None,
    ) -> Linear:
        """Add a linear layer.

        Args:
            name: its name in the module being built.
            in_features: input width m.
            out_features: output width k.
            bias: whether it has a bias of width k.
            role: "q", "v" or "qkv" for the projections that the qv target means.
            head: an output head, which all-linear leaves out and quantisation does not touch.
            quantised: whether quantisation touches it.
            tied_to: the embedding whose table is this layer's weight too.
        """
        with self.inside(name):
            made = Linear(
                self, in_features, out_features, bias, role=role, head=head, quantised=quantised, tied_to=tied_to
            )
        self.linears.append(made)
        return made

    def norm(self, name: str, width: int, *, bias: bool = False) -> Norm:
        """Add a norm's weight, and its bias where it is a LayerNorm."""
        with self.inside(name):
            weight = self.parameter("weight", (width,))
            return Norm(name, weight, self.parameter("bias", (width,)) if bias else None)

    def embedding(self, name: str, rows: int, width: int) -> Parameter:
        """Add an embedding table."""
        with self.inside(name):
            return self.parameter("weight", (rows, width))

    def attach_adapters(self) -> None:
        """Give every targeted linear layer its adapter.

        Raises:
            UnknownNameError: a target that no module of this model answers to.
        """
        if self.make_adapter is not None:
            self.adapt(targeted(self.linears, self.run))

    def adapt(self, layers: list[Linear]) -> None:
        """Give these linear layers their adapters."""
        assert self.make_adapter is not None, "full fine-tuning adapts nothing"
        self.adapted = layers
        for layer in layers:
            with self.at(layer.path, layer.count):
                layer.adapter = self.make_adapter(self, layer)


#: Modules that TRL casts back to bf16, by their names (its `peft_module_casting_to_bf16`).
_BACK_IN_BF16 = re.compile("lm_head|embed_tokens|wte|wpe")


def prepared_dtype(run: RunSpec, name: str) -> Dtype:
    """Return the dtype of a weight that is not quantised, after the k-bit preparation of the run."""
    if run.prepare_kbit == "none":
        return run.dtype
    return "bf16" if run.prepare_kbit == "trl" and _BACK_IN_BF16.search(name) else "fp32"


def _ends(row: Sequence[int]) -> list[tuple[int, int]]:
    """Return the layers to build of a row that are alike, and how many each stands for."""
    if len(row) <= TRACED_LAYERS:
        return [(index, 1) for index in row]
    return [(row[0], 1), (row[1], 1 + len(row) - TRACED_LAYERS), (row[-2], 1), (row[-1], 1)]


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm's parameters; the family says which formula runs."""

    name: str
    weight: Parameter
    bias: Parameter | None

    def __call__(self, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
        """Run the norm by a family's formula."""
        with x.tape.scope(self.name):
            return function(x, self.weight) if self.bias is None else function(x, self.weight, self.bias)


class Linear:
    """A linear layer (k, m), with its adapter once it has one."""

    def __init__(
        self,
        builder: Builder,
        in_features: int,
        out_features: int,
        bias: bool,
        *,
        role: str,
        head: bool,
        quantised: bool,
        tied_to: Parameter | None,
    ) -> None:
        self.path, self.in_features, self.out_features = builder.path, in_features, out_features
        self.name = self.path.rsplit(".", 1)[-1]
        #: Number of the layer that it is in, as PEFT reads it off the path; None outside the layers.
        self.layer = next((int(part) for part in self.path.split(".") if part.isdecimal()), None)
        self.role, self.head, self.count = role, head, builder.multiplicity
        self.hands_on = head and builder.run.loss == "fused"
        self.quant: Quantization = "none" if head or not quantised else builder.run.resolved_quant
        self.by_inputs = builder.spec.architecture == "gpt2" and not head  # transformers' Conv1D
        self.weight = tied_to if tied_to is not None else self._weight(builder)
        # bitsandbytes casts the bias of a quantised layer once and for all, in its first forward
        dtype = ops.COMPUTE_DTYPE if self.quant in ("nf4", "nf4-dq") else None
        self.bias = builder.parameter("bias", (out_features,), dtype=dtype) if bias else None
        self.adapter: AdapterForward | None = None

    def _weight(self, builder: Builder) -> Parameter:
        shape = (self.out_features, self.in_features)
        if self.quant == "none":
            return builder.parameter("weight", shape)
        if self.quant == "int8":
            builder.parameter("SCB", (self.out_features,), kind=BUFFERS, dtype="fp32")
            return builder.parameter("weight", shape, trained=False, dtype="int8")
        hold_nf4(builder, self.in_features * self.out_features, double=self.quant == "nf4-dq")
        # The weight as it was loaded. Nothing of it is held; what is dequantised has its shape, in backward its dtype.
        dtype = builder.run.dtype
        return Parameter(builder.tape, f"{self.path}.weight", shape, dtype, trained=False, kind=WEIGHTS)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the layer with its adapter: (..., m) to (..., k). A fused loss is handed what its head is given."""
        if self.hands_on:
            return x
        with x.tape.scope(self.name):
            return self.base(x) if self.adapter is None else self.adapter(x, self.base(x))

    def base(self, x: Tensor) -> Tensor:
        """Run the layer without its adapter."""
        if self.quant == "none":
            return ops.linear(x, self.weight, self.bias, by_inputs=self.by_inputs)
        if self.quant == "int8":
            return ops_quantized.int8_linear(x, self.weight, self.bias)
        return ops_quantized.dequantized_linear(x, self.weight, self.bias, double=self.quant == "nf4-dq")


def hold_nf4(builder: Builder, numel: int, *, double: bool) -> None:
    """Add what bitsandbytes keeps of a 4-bit weight: two values a byte, one scale a block of 64, code tables.

    With double quantisation the scales are 8-bit in blocks of 256, with an fp32 scale each and one fp32 offset.
    """
    blocks = -(-numel // 64)
    builder.parameter("weight", (-(-numel // 2),), trained=False, dtype="uint8").packed = 2
    builder.parameter("quant_state.code", (16,), kind=BUFFERS, dtype="fp32")
    builder.parameter("absmax", (blocks,), kind=BUFFERS, dtype="uint8" if double else "fp32")
    if double:
        builder.parameter("nested_absmax", (-(-blocks // 256),), kind=BUFFERS, dtype="fp32")
        builder.parameter("nested_code", (256,), kind=BUFFERS, dtype="fp32")
        builder.parameter("offset", (), kind=BUFFERS, dtype="fp32")


def targeted(linears: list[Linear], run: RunSpec) -> list[Linear]:
    """Return the layers that the run's targets name, as PEFT matches them (suffixes of whole name parts)."""
    targets = run.method.targets
    if run.method.name == "lora-qv" and targets == ("all-linear",):
        targets = ("qv",)
    if targets == ("all-linear",):
        return [layer for layer in linears if not layer.head and is_in_adapted(layer, run)]
    if "all-linear" in targets:
        raise BadInputError("the target all-linear stands alone; name modules, or nothing else")
    chosen: dict[int, Linear] = {}
    for target in targets:
        if target == "qv":
            found = [x for x in linears if x.role in ("q", "v", "qkv")]
        else:
            found = [x for x in linears if x.path == target or x.path.endswith("." + target)]
        if not found:
            known = {x.name for x in linears} | {"all-linear", "qv"}
            raise UnknownNameError("target module", target, known, f"Modules of {run.model.name}: {_names(linears)}.")
        within = [layer for layer in found if is_in_adapted(layer, run)]
        if not within:
            raise nothing_there(target, run.adapted_layers, run.model.name)
        chosen.update((id(layer), layer) for layer in within)
    return list(chosen.values())


def is_in_adapted(layer: Linear, run: RunSpec) -> bool:
    """Return whether a linear layer is in one of the layers that have adapters, where the run chooses some."""
    return run.method.layers is None or (layer.layer is not None and run.method.adapts(layer.layer))


def _names(linears: list[Linear]) -> str:
    return ", ".join(dict.fromkeys(layer.name for layer in linears))
