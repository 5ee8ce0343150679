"""Models and devices as data files with a source for every figure, and Hugging Face configurations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafa_prof.catalog.configs import spec_from_config
    from lorafa_prof.catalog.devices import device_names, load_device
    from lorafa_prof.catalog.model_catalog import find_config, load_model, model_entry, model_names

__all__ = ["device_names", "find_config", "load_device", "load_model", "model_entry", "model_names", "spec_from_config"]

_HOMES = {
    "device_names": "devices",
    "find_config": "model_catalog",
    "load_device": "devices",
    "load_model": "model_catalog",
    "model_entry": "model_catalog",
    "model_names": "model_catalog",
    "spec_from_config": "configs",
}


def __getattr__(name: str) -> Any:
    """Import a name from its module when it is first asked for, and nothing else."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
