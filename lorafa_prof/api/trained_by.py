"""What trains the model of a Trainer: its optimizer, by its class, and LoRA-FA's own layers.

Nothing of transformers, PEFT or PyTorch is imported: objects and classes are asked for what they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lorafa_prof.errors import UnsupportedError

#: Optimizers that a class alone tells; AdamW is told apart by its switches.
_CLASSES = {"SGD": "sgd", "Adafactor": "adafactor", "LoraFA": "lorafa", "LoraFAOptimizer": "lorafa-peft"}
#: bitsandbytes' AdamW, by bits and whether paged. Its classes set these; the Trainer sets them of the plain class.
_BITSANDBYTES = {(8, False): "adamw-8bit", (8, True): "paged-adamw-8bit", (32, True): "paged-adamw"}
#: How `lorafa.prepare` and `LoraFA` are modelled, by the argument: as they are without it, on a GPU.
_PREPARED = {"trains": ("B",), "dropout": ("recompute",), "products": ("input",)}
_STEPS = {"fused": (None, True), "batched": (None, True)}


class Planned(NamedTuple):
    """An optimizer that is to be made."""

    kind: type
    options: Mapping[str, Any]


def optimizer_of(trainer: Any) -> Any:
    """Return the optimizer of a Trainer: the one that it has, or will make of a class that it was given; else None."""
    made = getattr(trainer, "optimizer", None)
    asked = getattr(trainer, "optimizer_cls_and_kwargs", None)
    return Planned(*asked) if made is None and asked is not None else made


def optimizer_name(optimizer: Any) -> str:
    """Return an optimizer as the run option has it, whatever accelerate has wrapped around it.

    Raises:
        UnsupportedError: one that no engine models.
    """
    kind, options = optimizer if isinstance(optimizer, Planned) else _made(getattr(optimizer, "optimizer", optimizer))
    name = kind.__name__
    if name == "AdamW" and kind.__module__.startswith("torch."):
        return "adamw-fused" if options.get("fused") else "adamw"
    if "AdamW" in name and kind.__module__.startswith("bitsandbytes."):
        bits = 8 if "8bit" in name else 32 if "32bit" in name else options.get("optim_bits", 32)
        paged = name.startswith("Paged") or bool(options.get("is_paged"))
        if (bits, paged) in _BITSANDBYTES:
            return _BITSANDBYTES[bits, paged]
        name = f"{name} of {bits} bits, not paged"
    if name not in _CLASSES:
        known = ", ".join(("AdamW", *_CLASSES))
        raise UnsupportedError(f"optimizer {name} is not modelled ({known} are); say optimizer= what to take instead")
    if _CLASSES[name] == "lorafa":
        _require("LoraFA", _STEPS, options)
    return _CLASSES[name]


def _made(optimizer: Any) -> Planned:
    """Return the class of an optimizer and what it was made with, as far as it remembers."""
    kept = {name: getattr(optimizer, name, None) for name in (*_STEPS, "is_paged")}
    kept["optim_bits"] = getattr(getattr(optimizer, "args", None), "optim_bits", 32)
    return Planned(type(optimizer), kept | optimizer.defaults)


def is_prepared(model: Any, adapter: str) -> bool:
    """Return whether `lorafa.prepare` has made the layers of an adapter.

    Raises:
        UnsupportedError: of some layers it has, or otherwise than without arguments.
    """
    layers = [module for module in model.modules() if adapter in getattr(module, "lora_A", ())]
    prepared = [layer.one_sided[adapter] for layer in layers if adapter in getattr(layer, "one_sided", ())]
    if not prepared:
        return False
    if len(prepared) < len(layers):
        raise UnsupportedError(
            f"of {len(layers)} layers with adapters lorafa.prepare has made {len(prepared)}: all or none is modelled"
        )
    for how in prepared:
        _require("lorafa.prepare", _PREPARED, vars(how))
    return True


def _require(what: str, known: Mapping[str, tuple[Any, ...]], options: Mapping[str, Any]) -> None:
    """Refuse an argument that no engine models."""
    for name, values in known.items():
        said = options.get(name, values[0])
        if said not in values:
            raise UnsupportedError(f"{what}(..., {name}={said!r}) is not modelled: {name}={values[-1]!r} is")
