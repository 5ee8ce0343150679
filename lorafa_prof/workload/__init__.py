"""A run made real: the transformers model, PEFT adapters, optimizer and training step that a `RunSpec` describes.

Used unchanged by the engine that simulates (meta tensors) and the one that measures (cuda, cpu). Everything follows the
libraries' own defaults, so that what is predicted or observed is what a user would get.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafa_prof.workload.step import Workload, training_step
    from lorafa_prof.workload.versions import installed_versions

__all__ = ["Workload", "installed_versions", "training_step"]

#: Where each name is. They are imported when they are asked for: `lorafa_prof.workload.naming` is wanted in processes
#: of users as well, which need not have transformers and PEFT.
_PLACES = {"Workload": "step", "training_step": "step", "installed_versions": "versions"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
