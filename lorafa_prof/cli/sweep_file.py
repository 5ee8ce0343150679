"""The CSV file that a sweep adds its rows to: whole lines, in the sweep's order, taken up again where they end."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Sequence

from lorafa_prof.cli.sweep_grid import KEYS
from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.output import require_writable
from lorafa_prof.reports.table import csv_line

_END = b"\r\n"
WAYS_OUT = "give the same options again, name another file with -o, or give up these rows with --restart"


def refused_in(lines: bytes) -> int:
    """Return how many of some lines have an error, which is their last field."""
    import numpy as np  # ten times as quick as counting the ends of lines in which it is empty

    text = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    return int((text[ends - len(_END)] != ord(",")).sum())


class SweepFile:
    """A file of rows, locked against other sweeps while it is open. What it holds is not touched before `take_up`.

    Args:
        path: where it is; it need not be there yet.
        columns: of the rows.

    Raises:
        BadInputError: it cannot be written, or another sweep is writing it.
    """

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        self.path, self._columns = path, columns
        self._header = csv_line(list(columns)).encode()
        self._last = 0
        self.refused = 0
        """Rows that hold an error and no figures."""
        require_writable(path)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, which frees it for others."""
        os.close(self._handle)

    def __enter__(self) -> SweepFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take_up(self, keys: Iterable[str], *, together: int, restart: bool) -> int:
        """Make the file ready for the rows that it lacks, and return how many it has.

        Args:
            keys: what the sweep's lines begin with, in their order.
            together: rows that are computed together, and kept only together.
            restart: give up the rows that are there.

        Raises:
            BadInputError: a file of something else, or of other options; it stays as it is.
        """
        self._refuse_foreign()
        rows, end = (0, 0) if restart else self._common(keys, together)
        try:
            os.ftruncate(self._handle, end)
            os.lseek(self._handle, end, os.SEEK_SET)
        except OSError as error:
            raise self._unwritable(error) from error
        if end == 0:
            self.write(self._header)
            self.refused = 0
        return rows

    def last(self) -> bytes:
        """Return the lines of the last configuration that was there; none where there was none."""
        with open(self.path, "rb") as stream:
            stream.seek(self._last)
            return stream.read(os.lseek(self._handle, 0, os.SEEK_CUR) - self._last)

    def write(self, lines: bytes) -> None:
        """Add whole lines; where that fails, or is interrupted, the file ends with a whole line all the same.

        Raises:
            BadInputError: it cannot be written, as on a full disk.
        """
        start = os.lseek(self._handle, 0, os.SEEK_CUR)
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(self._handle, left) :]
            self.refused += refused_in(lines)
        except BaseException as error:
            with contextlib.suppress(OSError):
                there = os.lseek(self._handle, 0, os.SEEK_CUR) - start
                os.ftruncate(
                    self._handle, start + lines[:there].rfind(_END) + len(_END) if _END in lines[:there] else start
                )
            if isinstance(error, OSError):
                text = f"{self._unwritable(error)}; the rows that are there are whole, and the same command goes on"
                raise BadInputError(text) from error
            raise

    # -- what is there ---------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"another sweep is writing {self.path!r}: wait for it, or name another file") from None
        except OSError:  # a file system without locks
            return

    def _refuse_foreign(self) -> None:
        """Refuse a file that no sweep has begun; one that was cut within its header is a sweep's."""
        with open(self.path, "rb") as stream:
            there = stream.read(len(self._header))
        keys = csv_line(list(KEYS)).encode()[: -len(_END)] + b","
        if not self._header.startswith(there) and not there.startswith(keys):
            raise BadInputError(f"{self.path!r} is there already and is not a sweep's: name another file with -o")

    def _common(self, keys: Iterable[str], together: int) -> tuple[int, int]:
        """Return how many of the sweep's rows the file has, and where they end."""
        rows = kept = refused = 0
        with open(self.path, "rb") as stream:
            header = stream.readline()
            if not header.endswith(_END):
                return 0, 0
            if header != self._header:
                raise BadInputError(f"{self.path!r} has other columns than this sweep: {WAYS_OUT}")
            end = position = len(header)
            expected = iter(keys)
            for line in stream:
                if not line.endswith(_END):
                    break
                key = next(expected, None)
                if key is None or not line.startswith(key.encode()) or line.count(b",") < len(self._columns) - 1:
                    raise self._other(rows + 1, line, key)
                rows, position, refused = rows + 1, position + len(line), refused + (not line.endswith(b"," + _END))
                if rows % together == 0:
                    self._last, kept, end, self.refused = end, rows, position, refused
        return kept, end

    def _other(self, number: int, line: bytes, key: str | None) -> BadInputError:
        """Return the refusal of a row that is not the sweep's; the text names how the two differ."""
        if key is None:
            return BadInputError(f"{self.path!r} has more rows than the {number - 1:,} of this sweep: {WAYS_OUT}")
        there, wanted = (next(csv.reader([text])) for text in (line.decode("utf-8", "replace"), key))
        differing = [f"{name} {a}, not {b}" for name, a, b in zip(KEYS, there, wanted, strict=False) if a != b]
        if not differing:
            return BadInputError(f"row {number:,} of {self.path!r} is damaged: mend it, or {WAYS_OUT}")
        return BadInputError(
            f"{self.path!r} was made with other options: row {number:,} is of {'; '.join(differing)}: {WAYS_OUT}"
        )

    def _unwritable(self, error: OSError) -> BadInputError:
        return BadInputError(f"cannot write {self.path!r}: {error.strerror or error}")
