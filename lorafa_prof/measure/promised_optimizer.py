"""The promise that the optimizer is the one that was asked for, and that its states are as narrow as it keeps them."""

from __future__ import annotations

from typing import Any

import torch

from lorafa_prof.measure.costs import nbytes
from lorafa_prof.measure.subject import Subject, short
from lorafa_prof.results import Promise
from lorafa_prof.workload.naming import tensors_in

#: What the classes of the optimizers that a run can ask for are called.
CLASSES = {
    "adamw": "AdamW", "adamw-fused": "AdamW", "sgd": "SGD", "adamw-8bit": "AdamW8bit", "lorafa": "LoraFA",
    "lorafa-peft": "LoraFAOptimizer", "paged-adamw": "PagedAdamW", "paged-adamw-8bit": "PagedAdamW8bit",
    "adafactor": "Adafactor", "lora-pro": "LoraPro", "lora-pro-full": "LoraPro",
}  # fmt: skip
#: Of what LoRA-Pro's optimizer keeps moments.
_MOMENTS = {"lora-pro": "adapters", "lora-pro-full": "weights"}
_8BIT = ("adamw-8bit", "paged-adamw-8bit")
#: bitsandbytes scales its 8-bit states by blocks of so many.
_8BIT_BLOCK = 256


def optimizer(subject: Subject) -> Promise | None:
    """The optimizer is the one that was asked for, and so are the dtypes of its states."""
    if subject.run is None:
        return None
    asked, found = subject.run.resolved_optimizer, subject.optimizer
    name, fused = type(found).__name__, bool(found.defaults.get("fused"))
    states = states_of(subject)
    wrong = [name] if name != CLASSES[asked] else []
    if asked in ("adamw", "adamw-fused") and fused != (asked == "adamw-fused"):
        wrong.append("fused" if fused else "not fused")
    if asked in _MOMENTS and found.defaults.get("moments", _MOMENTS[asked]) != _MOMENTS[asked]:
        wrong.append(f"moments of {found.defaults['moments']}, not of {_MOMENTS[asked]}")
    wrong += sorted({
        f"states of {short(state.dtype)}, not {short(_dtype(asked, found, parameter))}"
        for parameter, state in states
        if state.shape == parameter.shape and state.dtype != _dtype(asked, found, parameter)
    })  # fmt: skip
    if not wrong:
        held = ", ".join(sorted({short(state.dtype) for _, state in states})) or "none"
        return Promise(name="optimizer", kept=True, detail=f"{asked}: {name}, states of {held}")
    stepped = {id(parameter): parameter for parameter, _ in states}.values()
    extra = sum(nbytes(state) for _, state in states) - sum(_bytes(asked, found, p) for p in stepped)
    return Promise(
        name="optimizer", kept=False, detail=f"{asked} was asked for; found: {', '.join(wrong)}",
        cost_bytes=extra if extra > 0 else None,
    )  # fmt: skip


def states_of(subject: Subject) -> list[tuple[Any, torch.Tensor]]:
    """Return parameters and their states, those left out that are one number or a table for all of them."""
    by_name = {_lorafa_key(path): p for path, p in subject.model.named_parameters() if "lora_A" not in path}
    found = []
    for key, state in subject.optimizer.state.items():
        parameter = by_name.get(key) if isinstance(key, str) else key
        if parameter is not None:
            own = {name: value for name, value in state.items() if "qmap" not in name}
            found += [(parameter, tensor) for tensor in tensors_in(own) if tensor.dim() > 0]
    return found


def _lorafa_key(path: str) -> str:
    """Return the name by which PEFT's LoRA-FA optimizer keeps the states of a parameter; a pair's are those of B."""
    return path[: path.find("lora")] + "lora" if "lora" in path else path


def _small(found: Any, parameter: Any) -> bool:
    """Return whether bitsandbytes keeps the states of so small a parameter in fp32."""
    return bool(parameter.numel() < getattr(getattr(found, "args", None), "min_8bit_size", 4096))


def _dtype(asked: str, found: Any, parameter: Any) -> torch.dtype:
    if asked in _8BIT:
        return torch.float32 if _small(found, parameter) else torch.uint8
    if asked in ("adafactor", "paged-adamw") or (asked == "lorafa" and parameter.dtype != torch.float64):
        return torch.float32
    dtype: torch.dtype = parameter.dtype
    return dtype


def _bytes(asked: str, found: Any, parameter: Any) -> int:
    """Two moments of a parameter: as wide as it is, or in fp32; or a byte each and a scale a block; none for plain SGD.

    Adafactor has fp32 means of a matrix's rows and columns, or a full second moment.
    """
    if asked == "sgd":
        return 0
    if asked == "adafactor":
        rows, shape = parameter.shape[:-1], parameter.shape
        return 4 * int(rows.numel() + shape[:-2].numel() * shape[-1] if len(shape) > 1 else shape.numel())
    elements = int(parameter.numel())
    if asked in _8BIT:
        return 2 * 4 * elements if _small(found, parameter) else 2 * elements + 2 * 4 * -(-elements // _8BIT_BLOCK)
    if asked == "lorafa":  # of a 16-bit parameter a copy too
        return 4 * elements * (2 if parameter.dtype == torch.float32 else 3)
    if asked == "paged-adamw":
        return 2 * 4 * elements
    return 2 * nbytes(parameter)
