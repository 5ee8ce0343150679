"""A memory snapshot in the form of `torch.cuda.memory._dump_snapshot`, for the tools that people already use.

docs.pytorch.org/memory_viz and `torch.cuda._memory_viz` open it. The form is that of PyTorch 2.13
(torch/csrc/cuda/memory_snapshot.cpp); what the page does with it is in torch/utils/viz/MemoryViz.js and
process_alloc_data.js. Three things of that page shape what is written here:

- Its unpickler knows protocols 2 to 4, and of their opcodes those of dict, list, tuple, text, numbers, booleans and
  None: no sets, no bytes.
- It turns integers of up to eight bytes into JavaScript numbers, which are exact below 2**53 only.
- It colours blocks by the `category` of trace entries, but fails to load a snapshot that has categories and none of
  them "unknown". So every entry has one, and entries that belong to no tensor say "unknown".
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What the allocator does, in PyTorch's words (TraceEntry::Action).
ACTIONS = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
)
#: The newest protocol that the page reads; Python 3.8 to 3.13 write it by default, and so does PyTorch there.
PROTOCOL = 4
#: JavaScript's Number.MAX_SAFE_INTEGER.
LARGEST_NUMBER = 2**53 - 1
#: The category of what belongs to no tensor.
UNKNOWN = "unknown"

Event = tuple[str, int, int, int]
"""(action, address, bytes, stream). The bytes of "alloc" and of both frees are the requested ones, as in PyTorch; for
"oom" the second figure is the bytes that are free on the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """Where an allocation comes from and what it is for."""

    op: str
    """The operator that allocates: "aten.mm"."""
    module: str
    """Path of the module that runs it: "model.layers.3.mlp.down_proj"."""
    category: str
    """A `Category`'s value: "activations"."""
    phase: str
    """Part of the step: "forward"."""
    shape: str = ""
    """As text: "[8192, 4096]"."""
    dtype: str = ""
    """As text: "bf16"."""

    @property
    def tensor(self) -> str:
        """Data type and shape in one: "bf16[8192, 4096]"."""
        return f"{self.dtype}{self.shape}"

    @property
    def summary(self) -> str:
        """All of it in one line."""
        parts = (self.module, self.op, self.tensor, self.category, self.phase)
        return ", ".join(part for part in parts if part)


def snapshot_bytes(
    history: Sequence[Event],
    labels: Sequence[int],
    table: Sequence[Label],
    segments: Sequence[Mapping[str, Any]],
    allocator_settings: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the file's content: the snapshot of `build_snapshot`, pickled. Arguments and errors are the same."""
    return pickle.dumps(build_snapshot(history, labels, table, segments, allocator_settings), PROTOCOL)


def build_snapshot(
    history: Sequence[Event],
    labels: Sequence[int],
    table: Sequence[Label],
    segments: Sequence[Mapping[str, Any]],
    allocator_settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one device's snapshot as plain data.

    There is no clock in a simulation: `time_us` is the number of the entry, and the settings say so.

    Args:
        history: everything the allocator did, in order, from an empty allocator on.
        labels: for every entry of `history` an index into `table`, or -1. A free without a label has its alloc's.
        table: the labels.
        segments: what the allocator holds at the end, as in `torch.cuda.memory._snapshot()["segments"]`: each with
            address, total_size, stream, segment_type, allocated_size, active_size, requested_size, is_expandable
            and blocks, and these with address, size, requested_size and state. They are copied, not changed.
        allocator_settings: shown by the page; what `is_expandable` says of the segments if left out.

    Raises:
        ValueError: the arguments contradict each other or cannot be shown; the text says which entry does.
    """
    if len(history) != len(labels):
        raise ValueError(f"{len(history)} entries of history but {len(labels)} labels")
    shown = _Shown(table)
    trace, live = _trace(history, labels, shown)
    closed = [_segment(number, segment, live, shown) for number, segment in enumerate(segments)]
    _check_same_blocks(live, closed)
    active = sum(segment["active_size"] for segment in closed)
    # PyTorch closes the trace with the snapshot itself. For the page this is the entry of category "unknown".
    trace.append(_entry(len(trace), ("snapshot", 0, active, 0), shown, -1))
    settings = allocator_settings
    if settings is None:
        settings = {"expandable_segments": any(segment["is_expandable"] for segment in closed)}
    return {
        "segments": closed,
        "device_traces": [trace],
        "allocator_settings": {**settings, "lorafa_prof": "simulated; time_us is the number of the event, not a time"},
        "external_annotations": [],
    }


class _Shown:
    """What stands for a label in the file. One object each, which pickle writes once and then refers to."""

    def __init__(self, table: Sequence[Label]) -> None:
        shared: dict[tuple[str, str], dict[str, Any]] = {}
        self.size = len(table)
        # The last one, which is index -1, is for no label.
        self.frames = [*(_frames(label, shared) for label in table), []]
        self.category = [*(label.category for label in table), UNKNOWN]
        self.summary = [*(label.summary for label in table), ""]

    def checked(self, index: int, where: str) -> int:
        if not -1 <= index < self.size:
            raise ValueError(f"{where}: label {index}, but there are {self.size} labels")
        return index


def _frames(label: Label, shared: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a label as a stack, innermost first, as PyTorch's are; the page prints "filename:line:name" of each.

    So a flame graph has the phase at its root, then the category, the module and the operator. The page leaves out
    frames that look like the interpreter's (a name with "_start" in it): `Label.summary` has everything once more.
    """
    stack = (
        ("tensor", label.tensor),
        ("operator", label.op),
        ("module", label.module),
        ("category", label.category),
        ("phase", label.phase),
    )
    return [
        shared.setdefault((what, name), {"filename": what, "line": 0, "name": name}) for what, name in stack if name
    ]


def _trace(
    history: Sequence[Event], labels: Sequence[int], shown: _Shown
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Return the trace's entries, and the label of every block that is still there by its address."""
    trace, live = [], {}
    for number, (event, given) in enumerate(zip(history, labels, strict=True)):
        action, address = event[0], event[1]
        if action not in ACTIONS:
            raise ValueError(f"entry {number}: unknown action {action!r}")
        label = shown.checked(given, f"entry {number}")
        if action == "alloc":
            live[address] = label
        elif label < 0 and action.startswith("free"):
            label = live.get(address, -1)
        if action == "free_completed":
            live.pop(address, None)
        trace.append(_entry(number, event, shown, label))
    return trace, live


def _entry(number: int, event: Event, shown: _Shown, label: int) -> dict[str, Any]:
    action, address, size, stream = event
    if not (0 <= address <= LARGEST_NUMBER and 0 <= size <= LARGEST_NUMBER and 0 <= stream <= LARGEST_NUMBER):
        raise ValueError(f"entry {number}: {event} has a number below 0 or above 2**53 - 1")
    return {
        "action": action,
        "device_free" if action == "oom" else "addr": address,
        "size": size,
        "stream": stream,
        "time_us": number,
        "frames": shown.frames[label],
        "category": shown.category[label],
        "user_metadata": shown.summary[label],
    }


def _segment(number: int, segment: Mapping[str, Any], live: Mapping[int, int], shown: _Shown) -> dict[str, Any]:
    blocks = [_block(block, live, shown) for block in segment["blocks"]]
    end = segment["address"]
    for block in blocks:
        # The page takes the sizes for the addresses, and `_memory_viz` stops where the sums differ.
        if block["address"] != end:
            raise ValueError(f"segment {number}: a block at {block['address']} where one before it ends at {end}")
        end += block["size"]
    if end > LARGEST_NUMBER or end - segment["address"] != segment["total_size"]:
        raise ValueError(
            f"segment {number}: blocks of {end - segment['address']} bytes in a segment of {segment['total_size']}"
        )
    for name, states in (("allocated_size", {"active_allocated"}), ("active_size", _ACTIVE)):
        if segment[name] != sum(block["size"] for block in blocks if block["state"] in states):
            raise ValueError(f"segment {number}: {name} {segment[name]} is not what its blocks add up to")
    # The pool of everything that is in no user's pool is (0, 0).
    return {"device": 0, "segment_pool_id": (0, 0), **segment, "frames": [], "blocks": blocks}


def _check_same_blocks(live: Mapping[int, int], segments: Sequence[Mapping[str, Any]]) -> None:
    """The page goes back from the final blocks through the trace, and stops at a block outside of all segments."""
    there = {block["address"] for segment in segments for block in segment["blocks"] if block["state"] in _ACTIVE}
    if there != live.keys():
        lost, new = sorted(live.keys() - there)[:3], sorted(there - live.keys())[:3]
        raise ValueError(f"blocks at {lost} are in the history but not in the segments, those at {new} the other way")


_ACTIVE = {"active_allocated", "active_pending_free"}


def _block(block: Mapping[str, Any], live: Mapping[int, int], shown: _Shown) -> dict[str, Any]:
    label = live.get(block["address"], -1) if block["state"] in _ACTIVE else -1
    return {**block, "frames": shown.frames[label], "user_metadata": shown.summary[label]}
