"""The written snapshot is one that PyTorch's own tools read, with the figures and the names that went in."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.reports.output import write_bytes_atomically
from lorafa_prof.simulate.snapshots.reader import check_snapshot, history_of, read_snapshot
from lorafa_prof.simulate.snapshots.writer import Event, Label, build_snapshot, snapshot_bytes
from lorafa_prof.units import MIB

WEIGHT = Label(op="aten.empty", module="model.embed_tokens", category="weights", phase="load")
SAVED = Label(
    op="aten.mm",
    module="model.layers.3.mlp.down_proj",
    category="activations",
    phase="forward",
    shape="[1024, 1536]",
    dtype="bf16",
)
TABLE = [WEIGHT, SAVED]

BASE = 0x7F0000000000
SECOND = BASE + 2 * MIB  # where the block after the first one of 2 MiB begins

#: A segment of 20 MiB; 2 MiB and 3 MiB come, the 2 MiB go, 300 B take their place, and 80 GiB are not to be had.
HISTORY: list[Event] = [
    ("segment_alloc", BASE, 20 * MIB, 0),
    ("alloc", BASE, 2 * MIB, 0),
    ("alloc", SECOND, 3 * MIB, 0),
    ("free_requested", BASE, 2 * MIB, 0),
    ("free_completed", BASE, 2 * MIB, 0),
    ("alloc", BASE, 300, 0),
    ("oom", 7 * MIB, 80 * 1024 * MIB, 0),
]
LABELS = [-1, 0, 1, -1, -1, 0, -1]


def block(address: int, size: int, requested: int, state: str) -> dict[str, Any]:
    return {"address": address, "size": size, "requested_size": requested, "state": state}


def segments() -> list[dict[str, Any]]:
    """What the history leaves."""
    return [
        {
            "address": BASE,
            "total_size": 20 * MIB,
            "stream": 0,
            "segment_type": "large",
            "allocated_size": 3 * MIB + 512,
            "active_size": 3 * MIB + 512,
            "requested_size": 3 * MIB + 300,
            "is_expandable": False,
            "blocks": [
                block(BASE, 512, 300, "active_allocated"),
                block(BASE + 512, 2 * MIB - 512, 0, "inactive"),
                block(SECOND, 3 * MIB, 3 * MIB, "active_allocated"),
                block(SECOND + 3 * MIB, 15 * MIB, 0, "inactive"),
            ],
        }
    ]


@pytest.fixture(scope="module")
def snapshot() -> dict[str, Any]:
    data: dict[str, Any] = pickle.loads(snapshot_bytes(HISTORY, LABELS, TABLE, segments()))
    return data


def read_by_torch(name: str, data: dict[str, Any], **options: Any) -> str:
    """What `python -m torch.cuda._memory_viz NAME` makes of it."""
    viewer = pytest.importorskip("torch.cuda._memory_viz")
    text: str = getattr(viewer, name)(data, **options)
    return text


class TestTheFile:
    """The pickle itself."""

    def test_it_holds_what_the_page_asks_for(self, snapshot: dict[str, Any]) -> None:
        """One device, with settings, and the keys of PyTorch 2.13."""
        assert list(snapshot) == ["segments", "device_traces", "allocator_settings", "external_annotations"]
        assert len(snapshot["device_traces"]) == 1
        assert snapshot["segments"][0]["device"] == 0
        assert snapshot["segments"][0]["segment_pool_id"] == (0, 0)

    def test_the_page_can_unpickle_it(self) -> None:
        """Only opcodes that the unpickler of MemoryViz.js has a case for, in the protocols that it admits."""
        known = (
            "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT EMPTY_LIST "
            "EMPTY_TUPLE FRAME LIST LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO SETITEM "
            "SETITEMS SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3"
        )
        # A name of more than SHORT_BINUNICODE has, and more labels than BINGET can count, each used several times.
        long_name = Label(op="o" * 300, module="m", category="weights", phase="load")
        many = [long_name, *(Label(op=f"o{i}", module="m", category="weights", phase="load") for i in range(300))]
        history, labels = HISTORY * 100, [i % len(many) for i in range(len(HISTORY) * 100)]
        content = snapshot_bytes(history, labels, many, segments(), {"max_split_size": -1, "a": 0.5})
        assert "LONG_BINGET" in {opcode.name for opcode, _, _ in pickletools.genops(content)}
        assert {opcode.name for opcode, _, _ in pickletools.genops(content)} <= set(known.split())
        assert content[:2] == b"\x80\x04"

    def test_frames_are_written_once(self) -> None:
        """A thousand allocations and their frees cost some fifty bytes an event, not the stack's five frames each."""

        def size(count: int) -> int:
            actions = ("alloc", "free_requested", "free_completed")
            history: list[Event] = [(action, BASE + 512 * i, 512, 0) for i in range(count) for action in actions]
            return len(snapshot_bytes(history, [1] * len(history), TABLE, []))

        assert size(2000) - size(1000) < 60 * 3000

    def test_our_own_reader_takes_it(self, tmp_path: Path) -> None:
        """Written, read and checked, it is the same data and the same history."""
        write_bytes_atomically(tmp_path / "s.pickle", snapshot_bytes(HISTORY, LABELS, TABLE, segments()))
        data = read_snapshot(tmp_path / "s.pickle")
        check_snapshot(data)
        assert data == build_snapshot(HISTORY, LABELS, TABLE, segments())
        assert history_of(data) == HISTORY


class TestEntries:
    """The trace."""

    def test_every_event_is_there_in_order(self, snapshot: dict[str, Any]) -> None:
        """As PyTorch records them, the snapshot itself at the end; an oom says what was free instead of where."""
        shown = [(e["action"], e.get("addr"), e.get("device_free"), e["size"]) for e in snapshot["device_traces"][0]]
        assert shown == [
            ("segment_alloc", BASE, None, 20971520),
            ("alloc", BASE, None, 2097152),
            ("alloc", BASE + 2097152, None, 3145728),
            ("free_requested", BASE, None, 2097152),
            ("free_completed", BASE, None, 2097152),
            ("alloc", BASE, None, 300),
            ("oom", None, 7340032, 85899345920),
            ("snapshot", 0, None, 3146240),
        ]

    def test_time_is_the_number_of_the_event(self, snapshot: dict[str, Any]) -> None:
        """There is no clock, and the page's settings tab says so."""
        assert [e["time_us"] for e in snapshot["device_traces"][0]] == [0, 1, 2, 3, 4, 5, 6, 7]
        assert "number of the event, not a time" in snapshot["allocator_settings"]["lorafa_prof"]

    def test_a_block_says_where_it_comes_from(self, snapshot: dict[str, Any]) -> None:
        """The page prints "filename:line:name", innermost first; the same in the trace and in the final blocks."""
        entry, last = snapshot["device_traces"][0][2], snapshot["segments"][0]["blocks"][2]
        for holder in (entry, last):
            assert [f"{f['filename']}:{f['line']}:{f['name']}" for f in holder["frames"]] == [
                "tensor:0:bf16[1024, 1536]",
                "operator:0:aten.mm",
                "module:0:model.layers.3.mlp.down_proj",
                "category:0:activations",
                "phase:0:forward",
            ]
            assert holder["user_metadata"] == (
                "model.layers.3.mlp.down_proj, aten.mm, bf16[1024, 1536], activations, forward"
            )

    def test_a_free_has_the_label_of_its_allocation(self, snapshot: dict[str, Any]) -> None:
        """A page that goes back in time shows freed blocks with the frames of the free."""
        trace = snapshot["device_traces"][0]
        assert trace[3]["frames"] == trace[4]["frames"] == trace[1]["frames"] != []

    def test_every_entry_has_a_category_and_one_is_unknown(self, snapshot: dict[str, Any]) -> None:
        """The page stops at a snapshot with categories but without "unknown", even if every event has a label."""
        assert [e["category"] for e in snapshot["device_traces"][0]] == [
            "unknown", "weights", "activations", "weights", "weights", "weights", "unknown", "unknown",
        ]  # fmt: skip
        labelled = build_snapshot(HISTORY, [0] * len(HISTORY), TABLE, segments())
        assert {e["category"] for e in labelled["device_traces"][0][:-1]} == {"weights"}
        assert "unknown" in {e["category"] for e in labelled["device_traces"][0]}

    def test_a_reused_address_has_its_new_label(self) -> None:
        """The last allocation there counts for the final block."""
        data = build_snapshot(HISTORY, [-1, 0, 1, -1, -1, 1, -1], TABLE, segments())
        assert data["segments"][0]["blocks"][0]["frames"] == data["device_traces"][0][2]["frames"]

    def test_expandable_segments_are_named_in_the_settings(self) -> None:
        """From the segments, unless settings are given."""
        expandable = [{**segments()[0], "is_expandable": True}]
        for final, expected in ((expandable, True), (segments(), False)):
            data = build_snapshot(HISTORY, LABELS, TABLE, final)
            assert data["allocator_settings"]["expandable_segments"] is expected
        given = build_snapshot(HISTORY, LABELS, TABLE, expandable, {"max_split_size": -1})["allocator_settings"]
        assert given["max_split_size"] == -1
        assert "expandable_segments" not in given

    def test_the_arguments_stay_as_they_are(self) -> None:
        """Segments are copied: the allocator may go on."""
        mine = segments()
        build_snapshot(HISTORY, LABELS, TABLE, mine)
        assert mine == segments()


class TestContradictions:
    """Arguments that would give a snapshot which no tool can show."""

    @pytest.mark.parametrize(
        ("event", "label", "message"),
        [
            (("malloc", BASE, 512, 0), -1, "entry 0: unknown action 'malloc'"),
            (("alloc", BASE, 512, 0), 2, "entry 0: label 2, but there are 2 labels"),
            (("alloc", BASE, 512, 0), -2, "entry 0: label -2"),
            (("alloc", 2**53, 512, 0), -1, r"entry 0: .* above 2\*\*53 - 1"),
            (("alloc", BASE, -1, 0), -1, "entry 0: .* below 0"),
        ],
    )
    def test_an_entry(self, event: Event, label: int, message: str) -> None:
        """Named by its number."""
        with pytest.raises(ValueError, match=message):
            build_snapshot([event], [label], TABLE, [])

    def test_a_label_for_every_entry(self) -> None:
        """Not one more or less."""
        with pytest.raises(ValueError, match="7 entries of history but 6 labels"):
            build_snapshot(HISTORY, LABELS[:-1], TABLE, [])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"total_size": 20 * MIB + 512}, "blocks of 20971520 bytes in a segment of 20972032"),
            ({"allocated_size": 0}, "allocated_size 0 is not what its blocks add up to"),
            ({"active_size": 512}, "active_size 512 is not what its blocks add up to"),
            ({"address": BASE + 512}, "a block at .* where one before it ends at"),
        ],
    )
    def test_a_segment(self, change: dict[str, int], message: str) -> None:
        """Its blocks fill it and add up to its totals."""
        with pytest.raises(ValueError, match=f"segment 0: {message}"):
            build_snapshot(HISTORY, LABELS, TABLE, [{**segments()[0], **change}])

    def test_the_blocks_that_are_left(self) -> None:
        """What the history leaves is what the segments hold, no block more or less."""
        with pytest.raises(ValueError, match=rf"blocks at \[{BASE}, {SECOND}\] are in the history but not in the seg"):
            build_snapshot(HISTORY, LABELS, TABLE, [])
        with pytest.raises(ValueError, match=rf"those at \[{BASE}, {SECOND}\] the other way"):
            build_snapshot([], [], TABLE, segments())

    def test_a_block_that_waits_for_another_stream(self) -> None:
        """Its free is requested but not completed: still active, no longer allocated."""
        final = segments()
        final[0]["blocks"][2]["state"] = "active_pending_free"
        final[0]["allocated_size"] = 512
        history: list[Event] = [*HISTORY, ("free_requested", SECOND, 3 * MIB, 0)]
        data = build_snapshot(history, [*LABELS, -1], TABLE, final)
        assert data["segments"][0]["blocks"][2]["user_metadata"] == SAVED.summary


class TestPyTorchReadsIt:
    """The installed `torch.cuda._memory_viz`, against figures worked out by hand."""

    def test_segsum(self, snapshot: dict[str, Any]) -> None:
        """3 MiB and 300 B requested of 20 MiB; 212 B are lost to rounding."""
        text = read_by_torch("segsum", snapshot)
        assert "segments: 1\n" in text
        assert "total_reserved: 20.0MiB\n" in text
        assert "total_allocated: 3.0MiB\n" in text
        assert "total_free: 17.0MiB (0.0% internal)\n" in text

    def test_trace(self, snapshot: dict[str, Any]) -> None:
        """Every event by name; the snapshot entry is printed as it is."""
        lines = read_by_torch("trace", snapshot).splitlines()
        assert lines[:10] == [
            "Device 0 ----------------",
            "8 entries",
            f"a = cudaMalloc({BASE}, 20.0MiB)",
            "b = a[0:2.0MiB]",
            "c = a[2097152:3.0MiB]",
            "del b # 2.0MiB",
            "# free completed for b 2.0MiB",
            "d = a[0:300.0B]",
            "raise OutOfMemoryError # 80.0GiB requested, 7.0MiB free in CUDA",
            str(snapshot["device_traces"][0][7]),
        ]

    def test_memory(self, snapshot: dict[str, Any]) -> None:
        """A flame graph's lines have the phase at the root and the tensor at the tip, and requested bytes."""
        lines = read_by_torch("memory", snapshot, format_flamegraph=str).splitlines()
        root = "stream_0;active_allocated"
        assert (
            f"{root};phase:0:forward;category:0:activations;module:0:model.layers.3.mlp.down_proj;operator:0:aten.mm;"
            "tensor:0:bf16[1024, 1536] 3145728"
        ) in lines
        assert f"{root};phase:0:load;category:0:weights;module:0:model.embed_tokens;operator:0:aten.empty 300" in lines
        assert f"{root};<gaps> 212" in lines

    def test_trace_plot(self, snapshot: dict[str, Any]) -> None:
        """The page with the snapshot inside is made, and shows what was never freed when asked to."""
        assert "Active Memory Timeline" in read_by_torch("trace_plot", snapshot)
        copy = pickle.loads(pickle.dumps(snapshot))
        read_by_torch("trace_plot", copy, filter_freed=True)
        left = [e["action"] for e in copy["device_traces"][0]]
        assert left == ["segment_alloc", "alloc", "alloc", "oom", "snapshot"]
