"""The exceptions of the project, each with the exit code that the command line answers with.

They are caught in one place (`lorafa_prof.cli.main`); everything else that escapes is a bug.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


class LorafaProfError(Exception):
    """Base of every error that a user can cause or mend; its text is one clear line."""

    exit_code = 2


class BadInputError(LorafaProfError):
    """An option, a file or a configuration that cannot be used as given."""


class ContradictionError(BadInputError):
    """Options that the method they are given for cannot take, as another could."""


class SequenceTooLongError(BadInputError):
    """A step that looks up more positions than the model has.

    Args:
        text: the line that is shown.
        beyond: how many positions too many.
    """

    longest: int | None = None
    """The longest sequence that there are positions for; set by who knows how long the sequence was."""

    def __init__(self, text: str, *, beyond: int) -> None:
        super().__init__(text)
        self.beyond = beyond


class UnsupportedError(LorafaProfError):
    """A well-formed request that this engine does not model; the text names the way out."""


class MissingComponentError(LorafaProfError):
    """A package of an optional extra is not installed; the text holds the install command."""

    exit_code = 3


class DeviceError(LorafaProfError):
    """The device at hand cannot do what was asked."""

    exit_code = 4


class DoesNotFitError(DeviceError):
    """A training that would run out of the device's memory; the text says what would make it fit.

    Its first line says it all, and each further one a change.
    """

    prediction: Any = None
    """The `Prediction` that says so."""
    threshold: Any = None
    """A `Threshold` with the advice; None where none was asked for."""


class UnknownNameError(BadInputError):
    """A name (of a model, a device, a method, ...) that is not known; the text offers the nearest ones.

    Args:
        kind: what was named, in words: "model", "gpu", "method".
        name: what was given.
        known: every name that would have been accepted.
        hint: one more sentence, for example where else a name may come from.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name = kind, name
        self.nearest = nearest_names(name, known)
        offer = f"; did you mean {', '.join(self.nearest)}?" if self.nearest else ""
        shown = name if len(name) <= 80 else name[:77] + "..."
        super().__init__(f"unknown {kind} {shown!r}{offer or '.'}{' ' + hint if hint else ''}")


def nearest_names(name: str, known: Iterable[str], limit: int = 5) -> list[str]:
    """Return up to `limit` known names that resemble `name`: those it begins or is part of, then the similar ones."""
    key = _plain(name)[:80]
    plain = {candidate: _plain(candidate) for candidate in sorted(set(known))}
    if not key:
        return []
    within = [c for c, p in plain.items() if p.startswith(key)] + [c for c, p in plain.items() if key in p]
    import difflib  # needed when a name is wrong, and every start would pay for it

    by_plain = {p: c for c, p in plain.items()}
    similar = [by_plain[p] for p in difflib.get_close_matches(key, by_plain, n=limit, cutoff=0.5)]
    return list(dict.fromkeys(within + similar))[:limit]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
