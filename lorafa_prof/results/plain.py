"""Results as plain data, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lorafa_prof.ledger import Ledger, MemoryItem
from lorafa_prof.specs import MethodSpec, MlaSpec, ModelSpec, MoeSpec, RunSpec


def run_to_json(run: RunSpec) -> dict[str, Any]:
    """Return a run as plain data, model and method included."""
    data: dict[str, Any] = plain(run)
    return data


def run_from_json(data: Mapping[str, Any]) -> RunSpec:
    """Read what `run_to_json` wrote, checked like a run from the command line.

    Raises:
        BadInputError: a value out of range.
        TypeError, KeyError: not a run.
    """
    model = dict(data["model"])
    for name, kind in (("moe", MoeSpec), ("mla", MlaSpec)):
        if model.get(name) is not None:
            model[name] = kind(**model[name])
    model["layer_types"] = tuple(model["layer_types"])
    method = dict(data["method"])
    method["targets"] = tuple(method["targets"])
    rest = {key: value for key, value in data.items() if key not in ("model", "method")}
    return RunSpec(model=ModelSpec(**model), method=MethodSpec(**method), **rest)


def plain(value: Any) -> Any:
    """Return dataclasses as dictionaries, tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def ledger_to_json(ledger: Ledger) -> dict[str, Any]:
    """Return a ledger as plain data."""
    return {"moment": ledger.moment, "items": [item.to_json() for item in ledger.items]}


def ledger_from_json(data: Mapping[str, Any]) -> Ledger:
    """Read what `ledger_to_json` wrote.

    Raises:
        BadInputError: an item that is none.
        TypeError, KeyError: not a ledger.
    """
    return Ledger(data["moment"], tuple(MemoryItem.from_json(item) for item in data["items"]))
