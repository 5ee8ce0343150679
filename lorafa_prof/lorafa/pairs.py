"""The adapter pairs of a PEFT model: which matrix trains, which stays, and what cannot be one-sided.

Conventions are PEFT's: a layer computes x (W + s B A)^T with W (k, m), A (r, m), B (k, r) and s the module's scaling.
LoRA-FA trains B over a frozen A, LoRA-FB trains A over a frozen B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from lorafa_prof.errors import BadInputError, UnknownNameError, UnsupportedError

Side = Literal["A", "B"]
"""One matrix of a pair."""

OTHER: dict[Side, Side] = {"A": "B", "B": "A"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """The adapter of one layer; its parameters are looked up anew each time, since FSDP2 and others replace them."""

    path: str
    """The layer's name in the model."""
    layer: Any
    """PEFT's layer."""
    adapter: str
    """The adapter's name."""

    def weight(self, side: Side) -> torch.nn.Parameter:
        """Return A (r, m) or B (k, r)."""
        found: torch.nn.Parameter = getattr(self.layer, f"lora_{side}")[self.adapter].weight
        return found

    @property
    def scaling(self) -> float:
        """What the product B A is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return float(self.layer.scaling[self.adapter])

    def trains(self) -> Side:
        """Return which side is trained.

        Raises:
            BadInputError: both are, or none.
        """
        trained: list[Side] = [side for side in OTHER if self.weight(side).requires_grad]
        if len(trained) == 1:
            return trained[0]
        what = "both A and B of this adapter train" if trained else "neither A nor B of this adapter trains"
        raise BadInputError(f"{self.path}: {what}; lorafa.prepare(model) freezes A (or B) for good")


def adapter_pairs(model: torch.nn.Module, adapters: Sequence[str] | None = None) -> list[Pair]:
    """Return the pairs of a model's LoRA layers, in the order of its modules.

    Args:
        model: a PEFT model, however it is wrapped.
        adapters: names of adapters; None: each layer's active ones.

    Raises:
        BadInputError: there is no LoRA layer.
        UnknownNameError: an adapter that no layer has.
        UnsupportedError: a layer whose adapter is no pair of plain matrices, named.
    """
    pairs = [pair for path, layer in _tuned(model) for pair in _of_layer(path, layer, adapters)]
    missing = sorted(set(adapters or ()) - {pair.adapter for pair in pairs})
    if missing:
        known = {name for _, layer in _tuned(model) for name in layer.r}
        raise UnknownNameError("adapter", missing[0], known)
    if not pairs:
        raise BadInputError("the model has no LoRA adapters: wrap it with peft.get_peft_model(model, LoraConfig(...))")
    return pairs


def _tuned(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield path, layer
        elif isinstance(layer, BaseTunerLayer):
            raise UnsupportedError(f"{path}: {type(layer).__name__} is no LoRA layer; LoRA-FA needs LoraConfig's")


def _of_layer(path: str, layer: Any, adapters: Sequence[str] | None) -> Iterator[Pair]:
    for name in layer.active_adapters if adapters is None else adapters:
        if name not in layer.r:
            continue  # an adapter of other layers
        reason = _unsupported(layer, name)
        if reason:
            raise UnsupportedError(f"{path}: {reason}")
        yield Pair(path=path, layer=layer, adapter=name)


def _unsupported(layer: Any, name: str) -> str:
    """Return why a layer's adapter is no pair of plain matrices beside a weight, or nothing."""
    kind = type(layer).__name__
    variant = getattr(layer, "lora_variant", {}).get(name)
    if variant is not None or layer.use_dora.get(name, False):
        which = "DoRA" if variant is None else type(variant).__name__
        return f"{which} is not LoRA-FA's product of two matrices; use a LoraConfig without it"
    if name not in layer.lora_A or getattr(layer.lora_A[name], "weight", torch.empty(0)).dim() != 2:
        return f"LoRA-FA is built for linear layers, not for PEFT's {kind}; leave it out of target_modules"
    if layer.lora_A[name].weight.shape[0] != layer.r[name]:
        return f"PEFT's {kind} adapts several matrices at once, of which LoRA-FA knows nothing"
    if layer.lora_B[name].bias is not None:
        return "lora_bias=True adds a vector to B's product, which LoRA-FA does not have"
    return ""
