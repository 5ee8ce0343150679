"""The run's optimizer, in the implementation that it has on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from lorafa_prof.errors import MissingComponentError, UnsupportedError
from lorafa_prof.lorafa import LoraFA
from lorafa_prof.specs import PAGED, RunSpec
from lorafa_prof.workload.lora_pro import LoraPro, adapter_pairs
from lorafa_prof.workload.methods import follow_steps
from lorafa_prof.workload.models import DTYPES

_RATE = 1e-4

Make = Callable[[Any, RunSpec], torch.optim.Optimizer]


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _plain(model: torch.nn.Module, run: RunSpec) -> torch.optim.Optimizer:
    trained = _trained(model)
    kind, options = _kind(run.resolved_optimizer, trained)
    optimizer: torch.optim.Optimizer = kind(trained, lr=_RATE, **options)
    return optimizer


def _kind(name: str, trained: Sequence[torch.nn.Parameter]) -> tuple[Any, dict[str, Any]]:
    """Return the class of an optimizer that has one for all, and what it is called with beside parameters and rate.

    Raises:
        MissingComponentError: bitsandbytes is not installed.
        UnsupportedError: paged states on the CPU, where bitsandbytes would fall back to states that are not paged.
    """
    if name in _OF_TORCH:
        return _OF_TORCH[name]
    if name in PAGED and any(parameter.device.type == "cpu" for parameter in trained):
        raise paged_on_cpu(name)
    return getattr(_bitsandbytes(), _OF_BITSANDBYTES[name]), {}


def _adafactor(model: torch.nn.Module, run: RunSpec) -> torch.optim.Optimizer:
    """transformers' own, with the options that its Trainer gives it for `optim="adafactor"`; not torch's."""
    del run
    return transformers.Adafactor(_trained(model), lr=_RATE, scale_parameter=False, relative_step=False)


def paged_on_cpu(name: str) -> UnsupportedError:
    """Return the refusal of paged states on the CPU, real or simulated."""
    instead = "adamw-8bit keeps the same" if name == "paged-adamw-8bit" else "adamw keeps such"
    return UnsupportedError(
        f"the optimizer {name} keeps its states in CUDA's managed memory, which the CPU does not have; --optimizer "
        f"{instead} states in the device's own memory"
    )


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.optim as bnb_optim
    except ImportError:
        raise MissingComponentError(
            "8-bit and paged optimizers need bitsandbytes: pip install 'lorafa-prof[qlora]'"
        ) from None
    return bnb_optim


def _lorafa(model: torch.nn.Module, run: RunSpec) -> torch.optim.Optimizer:
    """Ours. What it does on a GPU has to be asked for on meta."""
    del run
    on_meta = True if next(model.parameters()).is_meta else None
    return LoraFA(model, lr=_RATE, fused=on_meta, batched=on_meta)


def _lorafa_peft(model: Any, run: RunSpec) -> torch.optim.Optimizer:
    try:
        from peft.optimizers import create_lorafa_optimizer
    except ImportError:
        raise UnsupportedError(
            "the installed peft has no LoRA-FA optimizer (0.16 has it); --optimizer lorafa is this package's own"
        ) from None
    rank = run.method.rank
    return create_lorafa_optimizer(model, r=rank, lora_alpha=2 * rank, lr=_RATE)


def _lora_pro(model: torch.nn.Module, run: RunSpec) -> torch.optim.Optimizer:
    pairs = list(adapter_pairs(model))
    paired = {id(half) for pair in pairs for half in (pair.a, pair.b)}
    others = [parameter for parameter in _trained(model) if id(parameter) not in paired]
    if run.resolved_optimizer == "lora-pro":
        return LoraPro(pairs, others, lr=_RATE)
    # moments of weights have their dtype, as those of full fine-tuning do
    return LoraPro(pairs, others, lr=_RATE, moments="weights", moments_dtype=DTYPES[run.dtype])


#: Class and options; foreach is CUDA's default, elsewhere it has to be asked for.
_OF_TORCH: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"foreach": True}), "adamw-fused": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"foreach": True}),
}  # fmt: skip
_OF_BITSANDBYTES = {
    "adamw-8bit": "AdamW8bit", "paged-adamw": "PagedAdamW", "paged-adamw-8bit": "PagedAdamW8bit",
}  # fmt: skip
_MAKERS: dict[str, Make] = {
    **dict.fromkeys((*_OF_TORCH, *_OF_BITSANDBYTES), _plain), "adafactor": _adafactor, "lorafa": _lorafa,
    "lorafa-peft": _lorafa_peft, "lora-pro": _lora_pro, "lora-pro-full": _lora_pro,
}  # fmt: skip


#: Those that put new tensors in the place of states in each step: Adafactor's root mean square of a parameter.
REPLACING_STATES = ("adafactor",)


def _lora_plus(model: Any, run: RunSpec) -> torch.optim.Optimizer:
    """LoRA+: an optimizer with a larger rate for B, 16 times A's as its authors advise; PEFT makes the groups."""
    try:
        from peft.optimizers import create_loraplus_optimizer
    except ImportError:
        raise UnsupportedError("the installed peft has no LoRA+ optimizer; 0.14 has it") from None
    kind, options = _kind(run.resolved_optimizer, _trained(model))
    return create_loraplus_optimizer(model, kind, lr=_RATE, loraplus_lr_ratio=16.0, **options)


def managed_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """Return what an optimizer keeps in CUDA's managed memory, outside PyTorch's allocator; None: it has no such thing.

    bitsandbytes marks these tensors; to PyTorch they are on the host.
    """
    if not getattr(optimizer, "is_paged", False):
        return None
    states: dict[Any, dict[str, Any]] = optimizer.state
    values = (value for state in states.values() for value in state.values())
    return sum(int(value.nbytes) for value in values if getattr(value, "is_paged", False))


def make_optimizer(model: torch.nn.Module, run: RunSpec) -> torch.optim.Optimizer:
    """Return the optimizer of the run for the trained parameters of `model`.

    Raises:
        UnsupportedError: one that this version does not build.
        ContradictionError: one that does not go with the method.
        MissingComponentError: its library is not installed.
    """
    run.check_optimizer()
    name = run.resolved_optimizer
    if name not in _MAKERS:
        raise UnsupportedError(f"no real step is built with the optimizer {name}; it is with {', '.join(_MAKERS)}")
    optimizer = (_lora_plus if run.method.name == "lora-plus" else _MAKERS[name])(model, run)
    follow_steps(model, optimizer, run.method)
    return optimizer
