"""Targets that are a regular expression, as PEFT takes a text: which modules and layers of a model it chooses.

PEFT holds it against the whole names of all modules. What it chooses is put into the words of --targets and --layers,
which all engines have: the same names of modules in some layers, or in all. What these words cannot say is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorafa_prof.errors import ContradictionError, MissingComponentError, UnsupportedError
from lorafa_prof.layers import ALL, Layers, spelled
from lorafa_prof.patterns import Pattern, is_pattern, matching
from lorafa_prof.specs import MethodSpec, ModelSpec, RunnableModel, RunSpec

__all__ = ["Chosen", "chosen_by", "is_pattern"]

#: Names that experts had before transformers fused them, by which PEFT still finds them.
_OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate_up_proj")
#: Heads of classifiers, which PEFT trains whole, and so never adapts.
_HEADS = ("classifier", "score")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a pattern chooses, in the words of --targets and --layers."""

    targets: tuple[str, ...]
    layers: Layers | None
    """None: all."""


@dataclass(frozen=True, kw_only=True)
class _Modules:
    """The names of a model's modules, as transformers has them, in its order."""

    linears: tuple[str, ...]
    others: tuple[str, ...]


def chosen_by(text: str, model: ModelSpec | RunnableModel, method: str, layers: str) -> Chosen:
    """Return what a pattern chooses in a model.

    Args:
        text: the pattern.
        model: whose modules it is held against.
        method: of the run; full fine-tuning has no adapters, and nothing is chosen for it.
        layers: what is said of layers beside it, which is to be nothing.

    Raises:
        BadInputError: no regular expression, or too long a one.
        ContradictionError: layers are chosen beside it.
        UnsupportedError: it takes too long, or chooses nothing, what is no linear layer, or other modules in one layer
            than in another; the text says what it matches.
        MissingComponentError: the model's modules are not known without libraries that are not installed.
    """
    if method == "full":
        return Chosen(targets=("all-linear",), layers=None)
    if layers != ALL:
        raise ContradictionError(
            f"the pattern {text[:60]!r} says by itself in which layers: PEFT takes no layers_to_transform beside it; "
            "leave out --layers, or name modules with --targets"
        )
    return _chosen(text, model)


@functools.lru_cache(maxsize=64)
def _chosen(text: str, model: ModelSpec | RunnableModel) -> Chosen:
    pattern = Pattern(text)
    modules = _modules(model)
    if model.task == "seq-cls":
        modules = _Modules(linears=_without_heads(modules.linears), others=_without_heads(modules.others))
    others = matching(pattern, modules.others)
    if others:
        first = next(name for name in modules.others if name in others)
        more = f", and {len(others) - 1:,} more like it" if len(others) > 1 else ""
        raise UnsupportedError(
            f"the pattern {pattern.text!r} also matches {first} of {model.name}{more}: no linear layer, and no engine "
            "adapts others; name modules with --targets"
        )
    matched = matching(pattern, modules.linears)
    if not matched:
        raise UnsupportedError(
            f"the pattern {pattern.text!r} matches no module of {model.name}, whose names are such as "
            f"{_middle(modules.linears)}; a pattern has to match the whole name"
        )
    in_order = [name for name in modules.linears if name in matched]
    found = _in_words(modules, in_order)
    if found is None or (found.layers is not None and _is_mixture(model)):
        raise UnsupportedError(
            f"the pattern {pattern.text!r} matches {_summary(in_order)} of {model.name}, which --targets and --layers "
            "cannot say: the same modules in each of some layers can be said"
        )
    if _is_mixture(model):
        _refuse_experts(pattern, found, modules, model.name)
    return found


def _in_words(modules: _Modules, matched: Sequence[str]) -> Chosen | None:
    """Return the names, as short as can be, and the layers that choose just what is matched; None: there are none."""
    numbers = {_layer_of(name) for name in matched}
    layers = None if None in numbers else tuple(sorted(number for number in numbers if number is not None))
    tails = [_within_layer(name).split(".") for name in matched]
    everything = (*modules.linears, *modules.others)
    for within in (None, layers) if layers else (None,):
        for length in range(1, max(map(len, tails)) + 1):
            names = tuple(dict.fromkeys(".".join(tail[-length:]) for tail in tails))
            answering = {
                path
                for path in everything
                if (within is None or _layer_of(path) in within)
                and any(path == name or path.endswith(f".{name}") for name in names)
            }
            if answering == set(matched):
                return Chosen(targets=names, layers=within)
    return None


def _layer_of(path: str) -> int | None:
    """Return the number of a module's layer as PEFT reads it off its name: the first number in it."""
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def _within_layer(path: str) -> str:
    """Return what a module is called within its layer: "self_attn.q_proj"; outside the layers its whole name."""
    parts = path.split(".")
    start = next((place + 1 for place, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[start:]) or path


def _summary(matched: Sequence[str]) -> str:
    """Return in words which modules are matched, in which layers."""
    by_name: dict[str, list[int]] = {}
    for path in matched:
        numbers = by_name.setdefault(_within_layer(path), [])
        number = _layer_of(path)
        if number is not None and number not in numbers:
            numbers.append(number)
    said = [f"{name} in {spelled(sorted(n))}" if n else name for name, n in by_name.items()]
    return ", ".join(said[:6]) + (f" and {len(said) - 6} more" if len(said) > 6 else "")


def _middle(names: Sequence[str]) -> str:
    return names[len(names) // 2] if names else "none"


def _is_mixture(model: ModelSpec | RunnableModel) -> bool:
    return isinstance(model, ModelSpec) and model.moe is not None


def _refuse_experts(pattern: Pattern, found: Chosen, modules: _Modules, name: str) -> None:
    """Refuse a pattern that reaches experts, which PEFT finds by names that they had once, and adapts in all layers.

    Raises:
        UnsupportedError: it does.
    """
    blocks = {path.rpartition(".")[0] for path in modules.others if path.endswith((".experts", ".gate", ".router"))}
    former = [f"{block}.{rest}" for block in blocks for old in _OF_EXPERTS for rest in (old, f"experts.{old}")]
    hit = next(iter(sorted(matching(pattern, former))), None)
    if hit is not None or not set(_OF_EXPERTS).isdisjoint(t.rpartition(".")[2] for t in found.targets):
        raise UnsupportedError(
            f"the pattern {pattern.text!r} reaches the experts of {name}, which PEFT adapts as parameters; name them "
            "with --targets"
        )


@functools.lru_cache(maxsize=16)
def _modules(model: ModelSpec | RunnableModel) -> _Modules:
    """Return the names of a model's modules: from closed forms, or of the model itself where there are none.

    Raises:
        UnsupportedError: as the libraries build it.
        MissingComponentError: they are not installed.
    """
    # A target with a number in it has closed forms build every layer, of which they need only some.
    run = RunSpec(model=model, method=MethodSpec(name="full", targets=("0",)), seq=1)
    if isinstance(model, ModelSpec):
        from lorafa_prof.analytic.trace import build_model

        builder, _ = build_model(run)
        linears = dict.fromkeys(layer.path for layer in builder.linears)
        owners = (held.parameter.name.rpartition(".")[0] for held in builder.held)
        return _Modules(linears=tuple(linears), others=_without(linears, [*owners, *linears]))
    try:
        import torch
        from transformers.pytorch_utils import Conv1D

        from lorafa_prof.workload.models import base_model
    except ImportError as error:
        raise MissingComponentError(f"a pattern needs the modules of {model.name}, and so {error.name}") from None
    named = dict(base_model(run, "meta").named_modules())
    linears = dict.fromkeys(path for path, module in named.items() if isinstance(module, (torch.nn.Linear, Conv1D)))
    return _Modules(linears=tuple(linears), others=_without(linears, named))


def _without_heads(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if set(_HEADS).isdisjoint(path.split(".")))


def _without(linears: Iterable[str], paths: Iterable[str]) -> tuple[str, ...]:
    """Return the modules of these paths, and those around them, that are no linear layers."""
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        found.update(dict.fromkeys(".".join(parts[:length]) for length in range(1, len(parts) + 1)))
    known = set(linears)
    return tuple(path for path in found if path and path not in known)
