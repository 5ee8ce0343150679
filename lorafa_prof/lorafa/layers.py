"""PEFT's LoRA layers, one side of them frozen for good and their forward replaced.

A prepared layer is PEFT's own object, of a class derived from its class: what saves, loads, merges and unloads
adapters goes on as before. Two things differ. Whatever turns the gradient of an adapter on (`set_adapter`, leaving
`disable_adapter`, `set_requires_grad`) leaves the frozen side frozen; and a frozen side that is trained nevertheless,
set by hand, is an error in the next forward, since it would cost a layer's whole input in silence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft.tuners import lora

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.lorafa.forward import Options, add_adapter
from lorafa_prof.lorafa.pairs import OTHER, Pair, Side

Dropout = Literal["recompute", "mask"]
Products = Literal["input", "adapter"]


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """How one adapter of a layer is trained."""

    path: str
    """The layer's name, for errors."""
    trains: Side
    dropout: Dropout
    """Whether the mask of dropout is drawn again in the backward, from its seed, or kept: a byte an element."""
    products: Products
    """Dtype of the products outside autocast: the layer's input's, or the adapter's."""


class OneSidedLayer:
    """What a prepared layer does otherwise than the class of PEFT's that it derives from."""

    one_sided: dict[str, OneSided]
    """By the adapter's name. Adapters that are not in it work as PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the base layer's result with the active adapters' products added."""
        layer: Any = self
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if torch.is_grad_enabled():
            for name in active:
                self._check_frozen(name)
        ours = active and all(name in self.one_sided for name in active)
        if layer.disable_adapters or layer.merged or not ours or kwargs.get("adapter_names") is not None:
            passed: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # of PEFT's class
            return passed
        kwargs = {key: value for key, value in kwargs.items() if key not in ("adapter_names", "alora_offsets")}
        result: torch.Tensor = layer.base_layer(x, *args, **kwargs)
        for name in active:
            result = self._with_adapter(result, x, name)
        return result

    def _with_adapter(self, result: torch.Tensor, x: torch.Tensor, name: str) -> torch.Tensor:
        layer: Any = self
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        how = self.one_sided[name]
        dropout = layer.lora_dropout[name]
        rate = float(dropout.p) if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0
        dtype = _product_dtype(x, b.dtype, how.products)
        if rate and torch.compiler.is_compiling():
            # a generator cannot be traced; what is kept of a traced dropout is the compiler's to choose
            product = torch.nn.functional.linear(
                torch.nn.functional.linear(torch.nn.functional.dropout(x.to(dtype), rate), a.to(dtype)), b.to(dtype)
            )
            total: torch.Tensor = result + (product * layer.scaling[name]).to(result.dtype)
            return total
        seed = _seed() if rate and how.dropout == "recompute" else None
        return add_adapter(result, x, a, b, Options(float(layer.scaling[name]), dtype, rate, seed))

    def _check_frozen(self, name: str) -> None:
        how = self.one_sided.get(name)
        if how is None:
            return
        frozen = OTHER[how.trains]
        weight: torch.Tensor = getattr(self, f"lora_{frozen}")[name].weight
        if weight.requires_grad:
            raise BadInputError(
                f"{how.path}: {frozen} of the adapter {name!r} is to stay frozen, but its requires_grad was set: it "
                "would train, and keep what only LoRA keeps. Set it to False, or call lorafa.prepare(model) again"
            )

    def freeze(self) -> None:
        """Freeze the sides that do not train."""
        for name, how in self.one_sided.items():
            getattr(self, f"lora_{OTHER[how.trains]}")[name].requires_grad_(False)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Set the active adapters, as PEFT does; it trains both sides of them."""
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]  # of PEFT's class
        self.freeze()

    def set_requires_grad(self, *args: Any, **kwargs: Any) -> None:
        """Train adapters or not, as PEFT does; it means both sides of them."""
        super().set_requires_grad(*args, **kwargs)  # type: ignore[misc]  # of PEFT's class
        self.freeze()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, as PEFT does."""
        self.one_sided.pop(adapter_name, None)
        super().delete_adapter(adapter_name)  # type: ignore[misc]  # of PEFT's class


def make_one_sided(pair: Pair, how: OneSided) -> None:
    """Let a layer of PEFT's train one side of an adapter.

    Raises:
        UnsupportedError: a layer of another kind than PEFT's linear ones; it is named.
    """
    layer = pair.layer
    if not isinstance(layer, OneSidedLayer):
        if type(layer) not in _linear_layers():
            raise UnsupportedError(
                f"{pair.path}: LoRA-FA is built for PEFT's Linear, Linear4bit and Linear8bitLt, not for its "
                f"{type(layer).__name__}; leave it out of target_modules"
            )
        layer.one_sided = {}
        kind: type = type(layer)
        layer.__class__ = _derived(kind)
    layer.one_sided[pair.adapter] = how
    layer.freeze()
    if pair.adapter in layer.active_adapters:
        pair.weight(how.trains).requires_grad_(True)


@functools.cache
def _derived(kind: type) -> type:
    return type(f"OneSided{kind.__name__}", (OneSidedLayer, kind), {"__module__": __name__})


def _linear_layers() -> tuple[type, ...]:
    found = (getattr(lora, name, None) for name in ("Linear", "Linear4bit", "Linear8bitLt"))
    return tuple(kind for kind in found if kind is not None)


def _product_dtype(x: torch.Tensor, adapter: torch.dtype, products: Products) -> torch.dtype:
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # on meta only where somebody simulates it
    if x.dtype != torch.float64 and available and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype if products == "input" else adapter


def _seed() -> int:
    """Return a seed of the host's default generator, which checkpointing sets back before it computes again."""
    return int(torch.randint(2**62, ()).item())
