"""The card that an environment names: as the catalog has it, or as the environment tells it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorafa_prof.catalog import load_device
from lorafa_prof.errors import UnknownNameError
from lorafa_prof.specs import DeviceSpec

#: A name that is, or could be, that of a file.
FILE_NAME = re.compile(r"[/\\]|\.json$", re.IGNORECASE)


def named_card(environment: Mapping[str, Any]) -> tuple[DeviceSpec | None, list[str]]:
    """Return the catalog's card of the name that the measurement has; one it has not, as the measurement tells it."""
    name, total, traits = environment.get("device"), environment.get("total_bytes"), _traits(environment)
    if isinstance(name, str) and not FILE_NAME.search(name):  # the name of a card, never of a file
        with contextlib.suppress(UnknownNameError):
            return replace(load_device(name), **traits), []
    if not isinstance(total, int):
        return None, ["the card is not known: kernels are taken as on one before Hopper; name it with --gpu"]
    shown = str(name or "without a name")[:60]
    card = DeviceSpec(
        name=shown, full_name=shown, vendor="nvidia", architecture="", total_bytes=total, bandwidth=None,
        peak_flops={}, **{"compute_capability": None, **traits},
    )  # fmt: skip
    known = "by the compute capability" if "compute_capability" in traits else "as on a card before Hopper"
    return card, [f"the card {shown} is not in the catalog: kernels are taken {known}; its CUDA context is not known"]


def _traits(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a measurement tells of its card that kernels depend on."""
    found: dict[str, Any] = {}
    capability, count = environment.get("compute_capability"), environment.get("multiprocessors")
    if isinstance(capability, list) and len(capability) == 2 and all(isinstance(n, int) for n in capability):
        found["compute_capability"] = tuple(capability)
    if isinstance(count, int):
        found["multiprocessors"] = count
    return found
