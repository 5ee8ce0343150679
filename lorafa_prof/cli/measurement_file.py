"""The file that measurements go to: whole after each of them, and read again by the next call that names it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafa_prof.cli.emit import SUFFIX_FORMATS, emit, render_json, write_stdout
from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.measurement import measurement_table, records_table
from lorafa_prof.reports.output import write_atomically, write_bytes_atomically
from lorafa_prof.results import Measurement, measurements_to_json
from lorafa_prof.results.saved import read_saved

#: Bytes of the largest file that is read again; a measurement with its timeline has some hundred kB.
LARGEST_FILE = 2**31
#: Outcomes that measuring again would not change.
FINAL = ("ok", "oom")
#: What two measurements need to have in common to be of the same device, beside the options.
_PLACE = ("device_type", "device", "total_bytes", "alloc_conf", "threads")

Entry = dict[str, Any]


class Setup:
    """One configuration on one device with one set of libraries: what makes a measurement the same as another.

    Args:
        wanted: a measurement of it, of which nothing but run, environment and versions is looked at.
    """

    def __init__(self, wanted: Measurement) -> None:
        self._wanted = plain_entry(wanted)

    def matches(self, entry: Mapping[str, Any]) -> bool:
        """Return whether a measurement of the file is one of this configuration.

        Versions are those of the libraries that the measurement names: bitsandbytes counts where it ran.
        """
        mine, other = self._wanted["environment"], entry["environment"]
        return (
            self._wanted["run"] == entry["run"]
            and all(self._wanted[key] == entry[key] for key in ("rank", "world_size"))
            and not entry["command"]
            and mine.get("options") == other.get("options")
            and all(mine.get(key) == other.get(key) for key in _PLACE)
            and all(self._wanted["versions"].get(key) == version for key, version in entry["versions"].items())
        )


class MeasurementFile:
    """A results file while a sweep goes on, perhaps of several at once: each takes in what the others have written.

    Args:
        path: where it is.
        say: told what the user should know about it.

    Raises:
        BadInputError: it is there and holds something else, or cannot be read; it is left as it is.
    """

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._state = _state(path)
        text = _read(path)
        if not text.strip("\0 \t\r\n"):  # new, or emptied when the machine went down
            return
        try:
            saved = read_saved(text)
        except BadInputError as error:
            raise BadInputError(f"{path!r} is there already: {error}; choose another file for -o") from error
        self.entries = list(saved.entries)
        if not saved.is_whole:
            aside = _put_aside(path)
            say(f"{path} was cut off: {len(self.entries)} whole measurements are kept, the broken file is {aside}")
            self.save()

    def find(self, setup: Setup) -> Entry | None:
        """Return the measurement of a configuration that needs no repetition."""
        return next((e for e in self.entries if e["outcome"] in FINAL and setup.matches(e)), None)

    def record(self, measurement: Measurement, setup: Setup) -> None:
        """Take in a measurement of this configuration, in place of those that the file has of it, and write the file.

        One that was interrupted does not take the place of one that was not.

        Raises:
            BadInputError: the file cannot be written, or holds something else by now; it holds what it held.
        """
        with alone(self.path):
            self._take_in_others(measurement)
            self._put(measurement, setup)

    def _take_in_others(self, waiting: Measurement) -> None:
        """Read the file again if it is not as this process left it."""
        if _state(self.path) == self._state:
            return
        try:
            saved = read_saved(_read(self.path) or '{"measurements": []}')
            if not saved.is_whole:
                raise BadInputError("not a whole file of measurements")
        except BadInputError as error:
            kept = rescue({"measurements": [*self.entries, plain_entry(waiting)]})
            raise BadInputError(f"{self.path!r} was changed meanwhile: {error}; the measurements are {kept}") from error
        self.entries = list(saved.entries)

    def _put(self, measurement: Measurement, setup: Setup) -> None:
        entry = plain_entry(measurement)
        same = [number for number, other in enumerate(self.entries) if setup.matches(other)]
        if measurement.outcome == "interrupted" and any(self.entries[n]["outcome"] in FINAL for n in same):
            return
        for number in reversed(same[1:]):
            del self.entries[number]
        if same:
            self.entries[same[0]] = entry
        else:
            self.entries.append(entry)
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            BadInputError: it cannot be written; the text says where the measurements are instead.
        """
        document = {"measurements": self.entries}
        try:
            write_atomically(self.path, render_json(document))
            self._state = _state(self.path)
        except BadInputError as error:
            raise BadInputError(f"{error}; the measurements are {rescue(document)}") from error


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Keep other processes of ours from writing files of that folder, where the system can.

    The folder is locked: the file itself is another after each write.
    """
    try:
        import fcntl

        folder = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY)
    except (ImportError, OSError):  # Windows, or a folder that cannot be read
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _state(path: str) -> tuple[int, ...] | None:
    """Return what changes when a file is written or replaced; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def plain_entry(measurement: Measurement) -> Entry:
    """Return a measurement as it would come out of a file."""
    entry: Entry = json.loads(json.dumps(measurement.to_json()))
    return entry


def _read(path: str) -> str:
    file = Path(path)
    try:
        if not file.exists():
            return ""
        if file.stat().st_size > LARGEST_FILE:
            raise BadInputError(f"{path!r} is there already, and too large to be a file of measurements")
        # What was cut off within a letter is cut off all the same.
        return file.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise BadInputError(f"cannot read {path!r}: {error.strerror or error}") from error


def _put_aside(path: str) -> str:
    """Keep a copy of the file under a name that is free, and return the name.

    Raises:
        BadInputError: it cannot be written.
    """
    number = 1
    while True:
        aside = f"{path}.broken" if number == 1 else f"{path}.broken-{number}"
        if not os.path.lexists(aside):
            break
        number += 1
    try:
        write_bytes_atomically(aside, Path(path).read_bytes())
    except OSError as error:
        raise BadInputError(f"cannot read {path!r}: {error.strerror or error}") from error
    return aside


def rescue(document: object) -> str:
    """Write a document elsewhere, on stdout if nowhere else, and say where."""
    text = render_json(document)
    try:
        handle, name = tempfile.mkstemp(prefix="lorafa-prof-", suffix=".json")
        os.close(handle)
        try:
            write_atomically(name, text)
        except BadInputError:
            os.unlink(name)
            raise
    except (OSError, BadInputError):
        write_stdout(text)
        return "on stdout, since no other place could be written either"
    return f"in {name}"


def is_results_file(format: str | None, output: str) -> bool:
    """Return whether measurements are kept in a file that is read again: JSON, which -o means unless told otherwise."""
    if Path(output).exists() and not Path(output).is_file():  # a pipe, a device
        return False
    return (format or SUFFIX_FORMATS.get(Path(output).suffix.lower(), "json")) == "json"


def emit_measurements(seen: Sequence[Measurement], format: str | None, output: str | None) -> None:
    """Write measurements once, to stdout or to a file that is not read again.

    Raises:
        BadInputError: it cannot be written; the text says where the measurements are instead.
    """
    try:
        emit(
            tables=lambda: [measurement_table(seen)],
            records=lambda: records_table(seen),
            document=lambda: measurements_to_json(seen),
            format=format or (None if output is None or Path(output).suffix else "json"),
            output=output,
        )
    except BadInputError as error:
        raise BadInputError(f"{error}; the measurements are {rescue(measurements_to_json(seen))}") from error
