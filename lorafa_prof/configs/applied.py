"""What configuration files add to the answers that are given for them, whoever asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lorafa_prof.catalog.json_files import one_line
from lorafa_prof.configs.reading import Reading
from lorafa_prof.errors import UnsupportedError

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What the files say, in words."""

    lines: tuple[str, ...] = ()
    """What was taken, what was not and why; a line each."""
    unmodelled: tuple[str, ...] = ()

    def on(self, results: list[Result]) -> list[Result]:
        """Return predictions or thresholds that say among their assumptions what the files say."""
        return [self._on_one(result) for result in results] if self.lines else results

    def _on_one(self, result: Any) -> Any:
        return replace(
            result, assumptions=(*result.assumptions, *self.lines), unmodelled=(*result.unmodelled, *self.unmodelled)
        )


def applied(reading: Reading | None, given: Collection[str]) -> Applied:
    """Return what files add to answers.

    Args:
        reading: the files; None: there are none.
        given: the options that were said otherwise, and count before what the files say.

    Raises:
        UnsupportedError: a file has for an option what no engine models, and it was not given.
    """
    if reading is None:
        return Applied()
    for option, reason in reading.refused.items():
        if option not in given:
            raise UnsupportedError(one_line(reason, 500))
    lines = reading.lines()
    overridden = [option for option in reading.settings if option in given]
    if overridden:
        lines.append(f"given otherwise, and so not taken from the files: {', '.join(overridden)}")
    return Applied(
        lines=tuple(one_line(line, 2000) for line in lines),
        unmodelled=tuple(one_line(line, 500) for line in reading.unmodelled),
    )
