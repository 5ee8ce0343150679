"""Reading of memory snapshots that somebody recorded: nothing in the file is run, and all of it is checked before use.

Two forms: what `torch.cuda.memory._dump_snapshot` writes, and traces (`.json.gz`) that hold only its events.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.snapshots.plain_pickle import read_plain
from lorafa_prof.simulate.snapshots.writer import ACTIONS, Event

#: Bytes of the largest file that is read.
LARGEST_FILE = 2 * 2**30
#: Bytes of the largest trace when unpacked, some five million events: a small file may unpack to anything, and
#: "[]," takes twenty times its size once it is a list.
LARGEST_TRACE = 256 * 2**20
#: PyTorch's own entry for the taking of the snapshot; nothing happens to memory in it.
_TAKEN = "snapshot"
_POOLS = ("small", "large")
_STATES = ("active_allocated", "active_pending_free", "active_awaiting_free", "inactive")


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceFile:
    """The events of one run on a real device, from its first allocation on."""

    case: dict[str, Any]
    """What was run, as the recorder wrote it down."""
    events: list[Event]
    """As in `snapshot.Event`, without those that mark a snapshot."""
    segments: list[tuple[int, int, str]]
    """Address, bytes and "small" or "large" of every segment at the end."""


def read_snapshot(source: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """Return the snapshot in a pickle, which is a file's path or its bytes, as plain data. See `check_snapshot`.

    Raises:
        BadInputError: the file cannot be read, is no pickle, or holds anything but plain data.
    """
    where = "snapshot" if isinstance(source, bytes) else _shown(os.fspath(source))
    data = source if isinstance(source, bytes) else _read(source, where)
    value = read_plain(data, where)
    if not isinstance(value, dict):
        raise BadInputError(f"{where}: a memory snapshot is a dict, not {type(value).__name__}")
    return value


def check_snapshot(data: dict[str, Any]) -> None:
    """Hold `data` to the form of `torch.cuda.memory._snapshot()`, as far as this project and PyTorch's tools use it.

    Keys that are not known are left alone. Frames are shared between entries: look at each list of them once.

    Raises:
        BadInputError: a part is missing or of the wrong type; the text says which, as "device_traces[0][17].size".
    """
    traces: list[Any] = _typed(data, "device_traces", list, "")
    segments: list[Any] = _typed(data, "segments", list, "")
    frames = _Frames()
    for where, trace in _lists([(f"device_traces[{i}]", trace) for i, trace in enumerate(traces)]):
        for index, entry in enumerate(trace):
            _check_entry(entry, f"{where}[{index}]")
            frames.check(entry, f"{where}[{index}]")
    for number, segment in enumerate(segments):
        _check_segment(segment, f"segments[{number}]")
        frames.check(segment, f"segments[{number}]")
    for where, blocks in _lists([(f"segments[{i}].blocks", segment["blocks"]) for i, segment in enumerate(segments)]):
        for index, block in enumerate(blocks):
            _check_block(block, f"{where}[{index}]")
            frames.check(block, f"{where}[{index}]")
    if "allocator_settings" in data:
        _typed(data, "allocator_settings", dict, "")


def history_of(data: dict[str, Any], device: int = 0) -> list[Event]:
    """Return one device's events in a snapshot that `check_snapshot` has passed.

    Raises:
        BadInputError: the snapshot has no such device.
    """
    traces = data["device_traces"]
    if not 0 <= device < len(traces):
        raise BadInputError(f"the snapshot has traces of {len(traces)} devices, not of device {device}")
    return [
        (entry["action"], entry["device_free" if entry["action"] == "oom" else "addr"], entry["size"], entry["stream"])
        for entry in traces[device]
        if entry["action"] != _TAKEN
    ]


def read_trace(path: str | os.PathLike[str]) -> TraceFile:
    """Return the trace in a `.json.gz` file of the form {"case": {...}, "events": [[action, address, bytes, stream],
    ...], "segments": [[address, bytes, "small" or "large"], ...]}.

    Raises:
        BadInputError: the file cannot be read or does not have this form.
    """
    where = _shown(os.fspath(path))
    packed = _read(path, where)
    try:
        data = json.loads(_unpack(packed))
        case: dict[str, Any] = _typed(data, "case", dict, "")
        events = [_event(row, f"events[{i}]") for i, row in enumerate(_typed(data, "events", list, ""))]
        segments = [_total(row, f"segments[{i}]") for i, row in enumerate(_typed(data, "segments", list, ""))]
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from None
    except zlib.error as error:
        raise BadInputError(f"{where}: not a whole gzip file: {error}") from None
    except (RecursionError, ValueError) as error:  # of which JSON's and UTF-8's errors are kinds
        raise BadInputError(f"{where}: not valid JSON: {str(error)[:120]}") from None
    return TraceFile(case=case, events=[e for e in events if e[0] != _TAKEN], segments=segments)


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with gzip's header
    text = unpacker.decompress(data, LARGEST_TRACE)
    if unpacker.unconsumed_tail:
        raise BadInputError(f"more than {LARGEST_TRACE} bytes when unpacked")
    if not unpacker.eof:
        raise BadInputError("not a whole gzip file: truncated")
    return text


def _read(path: str | os.PathLike[str], where: str) -> bytes:
    try:
        # Looked at before it is opened: a pipe waits for a writer, and a device may never end.
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BadInputError(f"{where}: not a regular file")
        if info.st_size > LARGEST_FILE:
            raise BadInputError(f"{where}: {info.st_size} bytes; at most {LARGEST_FILE} are read")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else None
        raise BadInputError(f"{where}: {reason or error}") from None


def _shown(path: str) -> str:
    text = path if len(path) <= 120 else f"{path[:58]}...{path[-58:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _typed(holder: Any, key: str, kind: type[Any], where: str) -> Any:
    """Return `holder[key]`, which must be there and of that type; True and False are no integers."""
    name = f"{where}.{key}" if where else key
    if type(holder) is not dict:
        raise BadInputError(f"{where or 'the whole'}: must be dict, not {type(holder).__name__}")
    if key not in holder:
        raise BadInputError(f"{name}: missing")
    value = holder[key]
    if type(value) is not kind:
        raise BadInputError(f"{name}: must be {kind.__name__}, not {type(value).__name__}")
    return value


def _size(holder: Any, key: str, where: str) -> int:
    size: int = _typed(holder, key, int, where)
    if size < 0:
        raise BadInputError(f"{where}.{key}: {size} bytes")
    return size


def _one_of(holder: Any, key: str, known: tuple[str, ...], where: str) -> str:
    value: str = _typed(holder, key, str, where)
    if value not in known:
        raise BadInputError(f"{where}.{key}: unknown {value[:40]!r}; known are {', '.join(known)}")
    return value


def _lists(named: list[tuple[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the lists with their names; no list that has something in it may be there twice.

    In a pickle a long list can stand in another a million times at two bytes each, and walking both would not end.
    """
    seen: dict[int, str] = {}
    for where, items in named:
        if type(items) is not list:
            raise BadInputError(f"{where}: must be list, not {type(items).__name__}")
        if items and seen.setdefault(id(items), where) != where:
            raise BadInputError(f"{where}: the same list as {seen[id(items)]}")
    return named


def _check_entry(entry: Any, where: str) -> None:
    action = _one_of(entry, "action", (*ACTIONS, _TAKEN), where)
    _typed(entry, "device_free" if action == "oom" else "addr", int, where)
    _size(entry, "size", where)
    _typed(entry, "stream", int, where)
    if "time_us" in entry:
        _typed(entry, "time_us", int, where)


def _check_segment(segment: Any, where: str) -> None:
    for key in ("address", "stream"):
        _typed(segment, key, int, where)
    for key in ("total_size", "allocated_size", "active_size"):
        _size(segment, key, where)
    _one_of(segment, "segment_type", _POOLS, where)
    _typed(segment, "blocks", list, where)


def _check_block(block: Any, where: str) -> None:
    _typed(block, "address", int, where)
    _size(block, "size", where)
    _size(block, "requested_size", where)
    _one_of(block, "state", _STATES, where)


class _Frames:
    """Checks stacks of frames, each list and each frame once: real snapshots share them, and hostile ones may."""

    def __init__(self) -> None:
        self.lists: set[int] = set()
        self.frames: set[int] = set()

    def check(self, holder: dict[str, Any], where: str) -> None:
        """Check `holder["frames"]`, if there is one: PyTorch leaves it out where it recorded none."""
        if "frames" not in holder or id(holder["frames"]) in self.lists:
            return
        stack = holder["frames"]
        if type(stack) is not list:
            raise BadInputError(f"{where}.frames: must be list, not {type(stack).__name__}")
        self.lists.add(id(stack))
        for index, frame in enumerate(stack):
            if id(frame) not in self.frames:
                place = f"{where}.frames[{index}]"
                for key, kind in (("filename", str), ("name", str), ("line", int)):
                    _typed(frame, key, kind, place)
                self.frames.add(id(frame))


def _event(row: Any, where: str) -> Event:
    if type(row) is not list or [type(field) for field in row] != [str, int, int, int]:
        raise BadInputError(f"{where}: must be [action, address, bytes, stream]")
    action, address, size, stream = row
    if action not in ACTIONS and action != _TAKEN:
        raise BadInputError(f"{where}: unknown action {action[:40]!r}; known are {', '.join(ACTIONS)}")
    return action, address, size, stream


def _total(row: Any, where: str) -> tuple[int, int, str]:
    if type(row) is not list or [type(field) for field in row] != [int, int, str] or row[2] not in _POOLS:
        raise BadInputError(f'{where}: must be [address, bytes, "small" or "large"]')
    address, size, pool = row
    return address, size, pool
