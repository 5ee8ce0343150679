"""Which steps of a script are looked at."""

from __future__ import annotations

from dataclasses import dataclass

from lorafa_prof.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to profile a training: `warmup` steps, then `steps` that are timed, then one that is traced."""

    warmup: int = 3
    """Steps that are only counted: the first makes the optimizer's states, and libraries choose their kernels."""
    steps: int = 10
    """Timed steps."""
    trace: bool = True
    """Whether a step is traced."""

    def __post_init__(self) -> None:
        for name, least in (("warmup", 1), ("steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise BadInputError(f"{name} must be a whole number from {least} on, not {value!r}")
