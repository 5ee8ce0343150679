"""Adapters in some layers alone: how PEFT is asked for them, and whether it has made them there and nowhere else.

PEFT takes layers by their number, `layers_to_transform`, and reads a module's layer off its path: the first number in
it, which comes after the name of the list that holds the layers (`layers_pattern`). In an encoder-decoder the layers of
that number in both stacks are meant. It looks at layers only where a name is part of a path: a whole path, of which its
"all-linear" consists, it adapts whatever its layer is. So here the names are spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.layers import check_within, experts_everywhere, nothing_there, spelled
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.naming import short_name

#: Methods for which PEFT adapts modules alone, and no parameters of experts.
_OF_MODULES = ("vera", "adalora")
_LAYER = re.compile(r"(?:.*?\.)?([^.]+)\.(\d+)\.")


def layer_of(path: str) -> int | None:
    """Return the number of the layer that a module is in, as PEFT reads it off its path; None outside the layers."""
    found = _LAYER.match(path)
    return None if found is None else int(found[2])


def within_layers(
    model: torch.nn.Module, run: RunSpec, targets: str | Collection[str], *, fused: Collection[str]
) -> dict[str, Any]:
    """Return what PEFT is asked to adapt in the run's layers: "target_modules" and "layers_..." of its configuration.

    Args:
        model: without adapters.
        run: a run that chooses layers.
        targets: "all-linear", or names of modules.
        fused: names that PEFT takes for parts of fused experts.

    Raises:
        BadInputError: a layer that the model does not have, or a name of nothing in these layers.
        UnsupportedError: fused experts, which PEFT adapts in all layers or none.
    """
    method, name = run.method, run.model.name
    assert method.layers is not None
    linears = {path for path, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    numbered = {number for path in linears if (number := layer_of(path)) is not None}
    if not numbered:
        raise UnsupportedError(f"{name}: its layers have no numbers by which --layers could choose some")
    check_within(method.layers, max(numbered) + 1, name)
    whole = targets == "all-linear"
    if method.name not in _OF_MODULES and fused and (whole or not set(fused).isdisjoint(targets)):
        raise experts_everywhere(name)
    paths = linears if whole else {path for path, _ in model.named_modules()}
    found = {path for path in paths if (number := layer_of(path)) is not None and method.adapts(number)}
    names = {path.rpartition(".")[2] for path in found} if whole else set(targets)
    missing = next((each for each in sorted(names) if not any(_answers(path, each) for path in found)), None)
    if missing is not None or not found:
        raise nothing_there(missing or str(targets), run.adapted_layers, name)
    lists = {match[1] for path in found if (match := _LAYER.match(path)) is not None}
    return {
        "target_modules": sorted(names), "layers_to_transform": list(method.layers), "layers_pattern": sorted(lists),
    }  # fmt: skip


def _answers(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def adapted_paths(model: torch.nn.Module) -> set[str]:
    """Return the paths of the modules that have adapters, as the model without PEFT's wrapper calls them."""
    return {short_name(path) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def check_layers(model: torch.nn.Module, run: RunSpec) -> None:
    """Check that PEFT has adapted modules in the run's layers alone.

    Raises:
        UnsupportedError: another layer has an adapter, or none has one.
    """
    assert run.method.layers is not None
    paths = adapted_paths(model)
    astray = sorted(path for path in paths if (number := layer_of(path)) is None or number not in run.method.layers)
    if astray or not paths:
        what = f"it adapts {astray[0]} too" if astray else "it adapts nothing"
        asked = spelled(run.method.layers)
        raise UnsupportedError(f"{run.model.name}: PEFT is asked for adapters in the layers {asked}, but {what}")
