"""Which libraries run the step, and what their releases differ in."""

from __future__ import annotations

import importlib.metadata
import re

from lorafa_prof.errors import MissingComponentError

#: The distributions whose releases decide what a step allocates.
LIBRARIES = ("torch", "transformers", "peft")


def installed_versions(*, quantized: bool = False) -> dict[str, str]:
    """Return the releases that are installed, by distribution; with `quantized` also that of bitsandbytes.

    Raises:
        MissingComponentError: one is not there; the text holds the command that installs it.
    """
    found = {name: _version(name, "torch") for name in LIBRARIES}
    if quantized:
        found["bitsandbytes"] = _version("bitsandbytes", "qlora")
    return found


def _version(name: str, extra: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingComponentError(
            f"the real training step needs {name}: pip install 'lorafa-prof[{extra}]'"
        ) from None


def release(name: str) -> tuple[int, ...]:
    """Return the numbers that an installed distribution's version begins with: (4, 48, 1)."""
    numbers = re.match(r"\d+(\.\d+)*", importlib.metadata.version(name))
    return tuple(int(part) for part in numbers.group().split(".")) if numbers else ()
