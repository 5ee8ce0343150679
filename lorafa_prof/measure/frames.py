"""What a measuring process says to the one that started it: one line a frame, a sign, a word and JSON.

A frame counts once its line has ended, so that a process may be killed in the middle of one. JSON has no control
characters, so that the sign at the beginning occurs nowhere else: what some library prints in between is passed over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

Kind = Literal["stage", "measurement", "steps", "done", "place", "refused", "failed"]
"""Where the run is, in words; the measurement so far; further steps of it, with the spread of all; the whole of it;
what there is to measure on; an error of ours; another exception."""

_SIGN = b"\x1e"
_KINDS = {kind.encode(): kind for kind in get_args(Kind)}


@dataclass(frozen=True)
class Frame:
    """One frame as it came; its JSON is parsed when it is wanted, for most are overtaken by the next."""

    kind: Kind
    data: bytes

    def body(self) -> Any:
        """Return what the frame holds.

        Raises:
            ValueError: not JSON.
        """
        return json.loads(self.data)


def write_frame(stream: BinaryIO, kind: Kind, body: object) -> None:
    """Write one frame, and see that it has left.

    Raises:
        ValueError: a figure that is not a number, which JSON does not have.
    """
    data = json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
    stream.write(_SIGN + kind.encode() + b" " + data + b"\n")
    stream.flush()


def read_frame(line: bytes) -> Frame | None:
    """Return the frame that a line holds, or None where it holds none, or not the whole of one."""
    _, sign, text = line.rpartition(_SIGN)
    word, _, data = text.partition(b" ")
    if not sign or not data.endswith(b"\n") or word not in _KINDS:
        return None
    return Frame(_KINDS[word], data)
