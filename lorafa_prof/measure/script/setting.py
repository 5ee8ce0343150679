"""What a measurement of a script says before any of its steps: the plan, the libraries, the place among processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence

from lorafa_prof.measure.script.plan import Plan
from lorafa_prof.results import Measurement

#: What may run in a script; those that it has imported are named in the measurement.
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl")
_ASSUMPTIONS = (
    "a script of your own; the first training in it is looked at",
    "a step goes from the end of one optimizer step to the end of the next, with all that the script does in between",
    "tokens are those of input_ids, padding included",
)


def nothing_seen(plan: Plan, command: Sequence[str]) -> Measurement:
    """Return the measurement that observations are added to; the process's rank is what its launcher says.

    Args:
        plan: which steps are what.
        command: what is run.
    """
    options = {"warmup": plan.warmup, "steps": plan.steps, "trace": plan.trace}
    return Measurement(
        outcome="ok", versions=imported_versions(), environment={"options": options}, command=tuple(command),
        rank=_of_environment("RANK", 0), world_size=_of_environment("WORLD_SIZE", 1), assumptions=_ASSUMPTIONS,
    )  # fmt: skip


def _of_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def imported_versions() -> dict[str, str]:
    """Return the releases of Python and of the libraries that the script has imported so far."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        if name in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found
