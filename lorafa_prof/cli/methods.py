"""The methods that a command answers for: those that were named, or the default ones as far as they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lorafa_prof import runs
from lorafa_prof.cli.program import say

Answer = TypeVar("Answer")


def for_each_method(asked: Sequence[str], answer: Callable[[str], Answer]) -> list[Answer]:
    """Return what `runs.for_each_method` does, which default methods are left out being said on stderr.

    Raises:
        as there.
    """
    return runs.for_each_method(asked, answer, say)
