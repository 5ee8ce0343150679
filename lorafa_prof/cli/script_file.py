"""The results file of a script under way: always whole, written by all processes of a run in turn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lorafa_prof.cli.emit import render_json
from lorafa_prof.cli.measurement_file import MeasurementFile, alone, plain_entry, rescue
from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.output import require_writable, write_atomically
from lorafa_prof.results import Measurement

_NO_WORD = "the process ended without a word (os._exit, a signal such as SIGKILL): this is what it had told by then"


class ScriptFile:
    """Holds the measurement of a script, one for each process that torchrun has started.

    What else the file holds stays; measurements of the same command are replaced.

    Args:
        path: where it is.
        say: told what the user should know about it.

    Raises:
        BadInputError: it is there and holds something else, or cannot be written.
    """

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        require_writable(path)
        self.path = os.path.abspath(path)  # the script may go to another folder
        self._say = say
        with alone(self.path):
            MeasurementFile(self.path, say)

    def keep_so_far(self, seen: Measurement) -> None:
        """Write down what is known, as it is to be read if the process ends without a word."""
        with contextlib.suppress(BadInputError, OSError):  # told at the end
            self._write(replace(seen, outcome="killed", error=_NO_WORD))

    def keep(self, seen: Measurement) -> None:
        """Write the measurement.

        Raises:
            BadInputError: the file cannot be written; the text says where the measurement is instead.
        """
        try:
            self._write(seen)
        except BadInputError as error:
            raise BadInputError(
                f"{error}; the measurement is {rescue({'measurements': [plain_entry(seen)]})}"
            ) from error

    def _write(self, seen: Measurement) -> None:
        entry = plain_entry(seen)
        with alone(self.path):
            others = [e for e in MeasurementFile(self.path, self._say).entries if not _is_replaced(e, entry)]
            # in the order of the ranks, behind what other commands have left
            same = [e for e in others if e["command"] == entry["command"]]
            rest = [e for e in others if e["command"] != entry["command"]]
            entries = rest + sorted([*same, entry], key=lambda e: int(e["rank"]))
            write_atomically(self.path, render_json({"measurements": entries}))


def _is_replaced(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether an entry is of an earlier run of the same command, or an earlier state of this process."""
    if old["run"] is not None or old["command"] != new["command"]:
        return False
    return bool(old["rank"] == new["rank"] or old["world_size"] != new["world_size"])
