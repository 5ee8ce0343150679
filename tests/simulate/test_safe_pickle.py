"""A recorded snapshot is read as data: what a real one holds comes through, everything else is refused unrun."""

from __future__ import annotations

import collections
import copy
import gzip
import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.snapshots import plain_pickle, reader as safe_pickle
from lorafa_prof.simulate.snapshots.plain_pickle import read_plain
from lorafa_prof.simulate.snapshots.reader import check_snapshot, history_of, read_snapshot, read_trace

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)

#: One frame shared by entries, as in what PyTorch 2.13 records (torch/csrc/cuda/memory_snapshot.cpp).
FRAME = {"name": "forward", "filename": "/usr/lib/model.py", "line": 12}


def entry(action: str, address: int, size: int, number: int) -> dict[str, Any]:
    where = "device_free" if action == "oom" else "addr"
    return {
        "action": action, where: address, "size": size, "stream": 0, "time_us": 1_700_000_000_000_000 + number,
        "compile_context": "N/A", "user_metadata": "", "frames": [FRAME],
    }  # fmt: skip


def recorded() -> dict[str, Any]:
    """A snapshot as torch.cuda.memory._snapshot() returns it, for a machine of two devices of which one is used."""
    block = {"address": 4096, "size": 512, "requested_size": 300, "state": "active_allocated", "frames": [FRAME]}
    segment = {
        "device": 0, "address": 4096, "total_size": 512, "allocated_size": 512, "active_size": 512,
        "requested_size": 300, "stream": 0, "segment_type": "small", "segment_pool_id": (0, 0),
        "is_expandable": False, "frames": [], "blocks": [block],
    }  # fmt: skip
    trace = [entry("segment_alloc", 4096, 512, 0), entry("alloc", 4096, 300, 1), entry("oom", 99, 700, 2)]
    return {
        "segments": [segment],
        "device_traces": [[*trace, entry("snapshot", 0, 512, 3)], []],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1, "garbage_collection_threshold": 0.0,
            "expandable_segments": False, "roundup_power2_divisions": {"1": 0, "2": 0},
        },
        "external_annotations": [{"name": "step", "stage": "START", "device": 0, "time_us": 1_700_000_000_000_001}],
    }  # fmt: skip


def written_by_cpp() -> bytes:
    """Protocol 2 as PyTorch's C++ writes it: BINPUT and LONG_BINPUT instead of MEMOIZE, keys before values, APPENDS."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    fields = text("action") + text("alloc") + text("addr") + number(0x7F0000000000) + text("size") + b"K\x08"
    fields += text("stream") + b"K\x00" + text("time_us") + number(1_700_000_000_000_000)
    trace = b"]q\x01(}r\x00\x01\x00\x00(" + fields + b"ue"
    return (
        b"\x80\x02}q\x00(" + text("segments") + b"]" + text("device_traces") + b"](" + trace + b"e"
        + text("allocator_settings") + b"}(" + text("garbage_collection_threshold")
        + b"G" + struct.pack(">d", 0.5) + b"uu."
    )  # fmt: skip


class TestPlainData:
    """What is let through."""

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_a_real_snapshot(self, protocol: int) -> None:
        """Every protocol that Python 3 has written snapshots with by default, and PyTorch's C++ too."""
        data = read_snapshot(pickle.dumps(recorded(), protocol))
        assert data == recorded()
        check_snapshot(data)

    def test_a_snapshot_written_by_cpp(self) -> None:
        """The exact bytes of its opcodes, read by Python's own reader as well."""
        data = read_snapshot(written_by_cpp())
        assert data == pickle.loads(written_by_cpp())
        check_snapshot(data)
        assert history_of(data) == [("alloc", 0x7F0000000000, 8, 0)]
        assert data["allocator_settings"] == {"garbage_collection_threshold": 0.5}

    def test_lists_and_dicts_of_any_length(self) -> None:
        """Python writes batches of 1000, and stores more objects than one byte can count."""
        data = {"device_traces": [{str(i): [i, -i, i * 2**40, f"text {i}"] for i in range(3000)}]}
        assert read_snapshot(pickle.dumps(data)) == data

    def test_long_texts(self) -> None:
        """Those of more than 255 bytes and of more than a frame have opcodes of their own; all of Unicode passes."""
        data = {"a": "é" * 200, "b": "\U0001f600" * 30_000, "c": b"\x00" * 70_000}
        assert read_snapshot(pickle.dumps(data)) == data

    def test_a_name_that_is_no_utf8(self) -> None:
        """Python keeps such bytes of a file's name as lone surrogates, which could not be printed."""
        assert read_plain(pickle.dumps("x\udc80.py")) == "x\ufffd\ufffd\ufffd.py"

    def test_sharing_is_kept(self) -> None:
        """A frame that a million entries share is in memory once."""
        data = read_snapshot(pickle.dumps(recorded()))
        first, second = data["device_traces"][0][:2]
        assert first["frames"][0] is second["frames"][0]

    @given(plain, st.sampled_from([2, 3, 4, 5]))
    def test_whatever_is_plain(self, value: Any, protocol: int) -> None:
        """Equal to what Python's reader makes of it, unless protocol 2 spells bytes as a function call."""
        written = pickle.dumps(value, protocol)
        if b"_codecs" in written or b"__builtin__" in written:
            with pytest.raises(BadInputError, match="GLOBAL"):
                read_plain(written)
        else:
            assert read_plain(written) == value


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def by_hand(middle: bytes) -> bytes:
    return b"\x80\x04" + middle + b"."


CALL = b"cos\nmkdir\nX\x06\x00\x00\x00/never\x85"


class TestRefusals:
    """What is not plain data is named, and not run."""

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_a_payload_is_not_run(self, protocol: int, tmp_path: Path) -> None:
        """The file that it creates when Python reads it is not there when we do."""
        victim = tmp_path / "here"
        written = pickle.dumps({"segments": [Payload(victim)]}, protocol)
        with pytest.raises(BadInputError, match=r"not plain data: (STACK_)?GLOBAL of '\w+\.mkdir'.*nothing was run"):
            read_snapshot(written)
        assert not victim.exists()
        pickle.loads(written)
        assert victim.exists()

    @pytest.mark.parametrize(
        ("middle", "message"),
        [
            (CALL + b"R", "GLOBAL of 'os.mkdir'"),
            (b"\x8c\x02os\x8c\x06system\x93", "STACK_GLOBAL of 'os.system'"),
            (b"(X\x01\x00\x00\x00xios\nsystem\n", "INST of 'os.system'"),
            (b"(X\x01\x00\x00\x00xo", "OBJ"),
            (b"})R", "REDUCE"),
            (b"}}b", "BUILD"),
            (b"})\x81", "NEWOBJ"),
            (b"})}\x92", "NEWOBJ_EX"),
            (b"\x82\x01", "EXT1"),
            (b"\x83\x01\x00", "EXT2"),
            (b"\x84\x01\x00\x00\x00", "EXT4"),
            (b"X\x01\x00\x00\x00xQ", "BINPERSID"),
            (b"Px\n", "PERSID"),
            (b"\x96" + b"\x00" * 8, "BYTEARRAY8"),
            (b"\x97", "NEXT_BUFFER"),
            (b"\x98", "READONLY_BUFFER"),
            (b"\x8f", "EMPTY_SET"),
            (b"(\x91", "FROZENSET"),
            (b"I1\n", "INT"),
            (b"S'x'\n", "STRING"),
            (b"N2", "DUP"),
            (b"N0", "POP"),
            (b"\x80\x04N", "PROTO"),
        ],
    )
    def test_an_opcode(self, middle: bytes, message: str) -> None:
        """By its name in Python's documentation, with what it would import."""
        with pytest.raises(BadInputError, match=f"not plain data: {message} "):
            read_plain(by_hand(middle))

    @pytest.mark.parametrize(
        "value", [collections.OrderedDict(a=1), 1j, {1, 2}, bytearray(b"x"), Path("x"), len, io.BytesIO, Ellipsis]
    )
    def test_an_object_of_python(self, value: object) -> None:
        """However harmless."""
        with pytest.raises(BadInputError, match="not plain data"):
            read_plain(pickle.dumps(value))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not a pickle"),
            (b"\x80", "not a pickle"),
            (b"\x80\x06N.", "not a pickle of protocol 2 to 5"),
            (b'{"segments": []}', "not a pickle"),
            (b"PK\x03\x04 a zip file, as torch.save makes", "not a pickle"),
            (pickle.dumps([1], 0), "not a pickle"),
            (by_hand(b""), "nothing on the stack"),
            (by_hand(b"a"), "nothing on the stack"),
            (by_hand(b"N\x86"), "nothing on the stack"),
            (by_hand(b"e"), "no mark"),
            (by_hand(b"h\x07" + b"N" * 9), "object 7 was never stored"),
            (by_hand(b"NNa"), "a NoneType where a list must be"),
            (by_hand(b"](u"), "a list where a dict must be"),
            (by_hand(b"}(Nu"), "a key that is no text but NoneType"),
            (by_hand(b"}K\x01Ns"), "a key that is no text but int"),
            (by_hand(b"}(X\x01\x00\x00\x00xu"), "a key without a value"),
            (by_hand(b"\xff"), "is no opcode"),
            (by_hand(b"\x8a\xff" + b"\x01" * 255), "an integer of 255 bytes"),
            (by_hand(b"\x8b\xff\xff\xff\x7f"), "an integer of 2147483647 bytes"),
        ],
    )
    def test_a_damaged_file(self, content: bytes, message: str) -> None:
        """In one line that says what is wrong."""
        with pytest.raises(BadInputError, match=message):
            read_plain(content)

    def test_every_truncation(self) -> None:
        """At whatever byte the copy broke off."""
        whole = pickle.dumps(recorded())
        for length in range(len(whole)):
            with pytest.raises(BadInputError, match=r"truncated|not a pickle"):
                read_snapshot(whole[:length])

    @pytest.mark.parametrize("value", [[], None, "text", 7])
    def test_a_pickle_of_something_else(self, value: object) -> None:
        """A snapshot is a dict."""
        with pytest.raises(BadInputError, match="a memory snapshot is a dict, not"):
            read_snapshot(pickle.dumps(value))


class TestBombs:
    """Files that cost more to read than they are worth."""

    @pytest.mark.parametrize("opcode", [b"\x95", b"\x8d", b"\x8e"], ids=["FRAME", "BINUNICODE8", "BINBYTES8"])
    def test_a_gigantic_length(self, opcode: bytes) -> None:
        """2**60 bytes are announced; nothing is set aside for them."""
        with pytest.raises(BadInputError, match=r"truncated: .*1152921504606846976"):
            read_plain(by_hand(opcode + struct.pack("<Q", 2**60)))

    def test_a_gigantic_index(self) -> None:
        """Python's reader would make room for four billion objects."""
        assert read_plain(by_hand(b"]r\xff\xff\xff\xff")) == []

    @pytest.mark.parametrize("depth", [40, 100_000])
    @pytest.mark.parametrize(("opener", "closer"), [(b"]", b"a"), (b"(", b"l"), (b"", b"\x85")])
    def test_deep_nesting(self, depth: int, opener: bytes, closer: bytes) -> None:
        """Refused, and without recursion: neither here nor when it is thrown away."""
        with pytest.raises(BadInputError, match="nested deeper than 32"):
            read_plain(by_hand(opener * depth + b"N" + closer * depth))

    def test_depth_is_that_of_the_longest_way(self) -> None:
        """An object that was first met near the top counts again further down, where others refer to it."""
        deep: list[Any] = []
        for _ in range(19):
            deep = [deep]
        further: list[Any] = [deep]
        for _ in range(10):
            further = [further]
        assert read_plain(pickle.dumps([deep, further])) == [deep, further]  # 1 + 10 + 1 + 20 containers
        with pytest.raises(BadInputError, match="nested deeper"):
            read_plain(pickle.dumps([deep, [further]]))

    def test_a_container_in_itself(self) -> None:
        """As a list, as a dict, and by way of another."""
        for middle in (b"]\x94h\x00a", b"}\x94X\x01\x00\x00\x00xh\x00s", b"]\x94]h\x00aa"):
            assert pickle.loads(by_hand(middle))  # it is a pickle
            with pytest.raises(BadInputError, match="contains itself"):
                read_plain(by_hand(middle))

    def test_a_billion_laughs(self) -> None:
        """Shared references are read in a moment: 10**20 leaves in 20 lists."""
        value: list[Any] = []
        for _ in range(20):
            value = [value] * 10
        data = read_snapshot(pickle.dumps({"device_traces": value, "segments": []}))
        with pytest.raises(BadInputError, match=r"device_traces\[1\]: the same list as device_traces\[0\]"):
            check_snapshot(data)

    def test_too_many_objects(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of empty lists takes a hundred times its size."""
        monkeypatch.setattr(plain_pickle, "MOST_OBJECTS", 1000)
        assert read_plain(by_hand(b"](" + b"]" * 500 + b"e")) == [[]] * 500
        with pytest.raises(BadInputError, match="more than 1000 objects"):
            read_plain(by_hand(b"](" + b"]" * 200_000 + b"e"))

    def test_too_many_opcodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that reading ends."""
        monkeypatch.setattr(plain_pickle, "MOST_OPCODES", 2**17)
        with pytest.raises(BadInputError, match="more than 131072 opcodes"):
            read_plain(by_hand(b"N" * 2**18))


class TestFuzzing:
    """Whatever the bytes: plain data, or one kind of error."""

    @staticmethod
    def read(content: bytes) -> None:
        try:
            data = read_snapshot(content)
            check_snapshot(data)
            history_of(data)
        except BadInputError:
            return
        pickle.dumps(data)

    @settings(max_examples=500)
    @given(st.binary(max_size=200))
    @example(CALL + b"R.")
    def test_random_bytes(self, content: bytes) -> None:
        """After a pickle's two first bytes, so that they get further."""
        self.read(content)
        self.read(b"\x80\x04" + content)

    @settings(max_examples=500)
    @given(st.data())
    def test_mutations(self, data: st.DataObject) -> None:
        """Bytes changed, cut out and doubled in a real snapshot."""
        content = bytearray(pickle.dumps(recorded(), data.draw(st.sampled_from([2, 4]))))
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(2, len(content) - 1))
            end = at + data.draw(st.integers(0, 40))
            choice = data.draw(st.sampled_from(["change", "cut", "double", "insert"]))
            if choice == "change":
                content[at] = data.draw(st.integers(0, 255))
            elif choice == "cut":
                del content[at:end]
            elif choice == "double":
                content[at:at] = content[at:end]
            else:
                content[at:at] = data.draw(st.sampled_from([CALL + b"R", b"\x95", b"\x8e", b"h\x00", b"(", b"]", b"}"]))
            if len(content) < 4:
                break
        self.read(bytes(content))

    @settings(max_examples=300)
    @given(
        st.lists(st.sampled_from([bytes([c]) for c in b"NKM()]}hajetudlsq\x85\x86\x87\x88\x89\x8a\x8c\x94X\x00\x01"]))
    )
    def test_programs(self, opcodes: list[bytes]) -> None:
        """Opcodes that are known, in any order."""
        self.read(by_hand(b"".join(opcodes)))


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """A real snapshot with one part replaced, or removed if the value is ...."""
    data = copy.deepcopy(recorded())
    holder: Any = data
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return data


class TestStructure:
    """check_snapshot names the place."""

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("device_traces",), ..., "device_traces: missing"),
            (("device_traces",), {}, "device_traces: must be list, not dict"),
            (("device_traces", 1), None, r"device_traces\[1\]: must be list, not NoneType"),
            (("device_traces", 0, 1), 7, r"device_traces\[0\]\[1\]: must be dict, not int"),
            (("device_traces", 0, 1, "size"), ..., r"device_traces\[0\]\[1\]\.size: missing"),
            (("device_traces", 0, 1, "size"), "300", r"device_traces\[0\]\[1\]\.size: must be int, not str"),
            (("device_traces", 0, 1, "size"), True, r"device_traces\[0\]\[1\]\.size: must be int, not bool"),
            (("device_traces", 0, 1, "size"), -1, r"device_traces\[0\]\[1\]\.size: -1 bytes"),
            (("device_traces", 0, 1, "addr"), ..., r"device_traces\[0\]\[1\]\.addr: missing"),
            (("device_traces", 0, 2, "device_free"), ..., r"device_traces\[0\]\[2\]\.device_free: missing"),
            (("device_traces", 0, 1, "stream"), 0.5, r"device_traces\[0\]\[1\]\.stream: must be int, not float"),
            (("device_traces", 0, 1, "time_us"), "now", r"device_traces\[0\]\[1\]\.time_us: must be int"),
            (("device_traces", 0, 1, "action"), "malloc", r"\[1\]\.action: unknown 'malloc'; known are alloc, free_"),
            (("device_traces", 0, 1, "frames"), None, r"device_traces\[0\]\[1\]\.frames: must be list, not NoneType"),
            (("device_traces", 0, 1, "frames"), ["x"], r"device_traces\[0\]\[1\]\.frames\[0\]: must be dict"),
            (("device_traces", 0, 1, "frames"), [{"filename": "x", "line": 1}], r"frames\[0\]\.name: missing"),
            (("segments",), ..., "segments: missing"),
            (("segments", 0), [], r"segments\[0\]: must be dict, not list"),
            (("segments", 0, "total_size"), ..., r"segments\[0\]\.total_size: missing"),
            (("segments", 0, "segment_type"), "huge", r"segments\[0\]\.segment_type: unknown 'huge'"),
            (("segments", 0, "blocks"), None, r"segments\[0\]\.blocks: must be list"),
            (("segments", 0, "blocks", 0), None, r"segments\[0\]\.blocks\[0\]: must be dict"),
            (("segments", 0, "blocks", 0, "state"), "lost", r"segments\[0\]\.blocks\[0\]\.state: unknown 'lost'"),
            (("segments", 0, "blocks", 0, "size"), None, r"segments\[0\]\.blocks\[0\]\.size: must be int"),
            (("segments", 0, "blocks", 0, "frames"), 3, r"segments\[0\]\.blocks\[0\]\.frames: must be list"),
            (("allocator_settings",), [], "allocator_settings: must be dict, not list"),
        ],
    )
    def test_a_part_that_is_wrong(self, path: tuple[str | int, ...], value: Any, message: str) -> None:
        """Missing, of another type, or out of its range."""
        with pytest.raises(BadInputError, match=message):
            check_snapshot(changed(*path, value=value))

    @pytest.mark.parametrize(
        "path", [("allocator_settings",), ("external_annotations",), ("device_traces", 0, 1, "frames")]
    )
    def test_what_older_releases_lack(self, path: tuple[str | int, ...]) -> None:
        """And what is left out where nothing was recorded."""
        check_snapshot(changed(*path, value=...))

    def test_blocks_are_not_shared_either(self) -> None:
        """A thousand segments with one list of a million blocks would be a billion to walk."""
        data = recorded()
        data["segments"].append({**data["segments"][0]})
        with pytest.raises(BadInputError, match=r"segments\[1\]\.blocks: the same list as segments\[0\]\.blocks"):
            check_snapshot(data)

    def test_history(self) -> None:
        """Events of one device, without the entry that marks the snapshot."""
        data = recorded()
        assert history_of(data) == [("segment_alloc", 4096, 512, 0), ("alloc", 4096, 300, 0), ("oom", 99, 700, 0)]
        assert history_of(data, 1) == []
        with pytest.raises(BadInputError, match="traces of 2 devices, not of device 2"):
            history_of(data, 2)


class TestFiles:
    """What a path may lead to."""

    def test_a_file(self, tmp_path: Path) -> None:
        """By path as by bytes; errors begin with the path."""
        path = tmp_path / "s.pickle"
        path.write_bytes(pickle.dumps(recorded()))
        assert read_snapshot(path) == read_snapshot(str(path)) == recorded()
        path.write_bytes(b"PK\x03\x04")
        with pytest.raises(BadInputError, match=r"s\.pickle: not a pickle"):
            read_snapshot(path)

    def test_places_without_a_file(self, tmp_path: Path) -> None:
        """A pipe would wait for ever."""
        os.mkfifo(tmp_path / "pipe")
        for path, message in (
            (tmp_path / "none", "No such file"),
            (tmp_path, "not a regular file"),
            (tmp_path / "pipe", "not a regular file"),
            (os.devnull, "not a regular file"),
            ("a\0b", "null"),
        ):
            with pytest.raises(BadInputError, match=message):
                read_snapshot(path)

    def test_a_file_that_is_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not even opened."""
        monkeypatch.setattr(safe_pickle, "LARGEST_FILE", 10)
        (tmp_path / "s.pickle").write_bytes(pickle.dumps(recorded()))
        with pytest.raises(BadInputError, match="at most 10 are read"):
            read_snapshot(tmp_path / "s.pickle")


class TestTraces:
    """The short form: events only."""

    @staticmethod
    def write(path: Path, data: object) -> Path:
        path.write_bytes(gzip.compress(data if isinstance(data, bytes) else json.dumps(data).encode()))
        return path

    def test_a_trace(self, tmp_path: Path) -> None:
        """Rows become tuples; the mark of a snapshot is left out."""
        events = [["segment_alloc", 4096, 2097152, 0], ["alloc", 4096, 300, 0], ["snapshot", 0, 512, 0]]
        data = {"case": {"model": "gpt2"}, "events": events, "segments": [[4096, 2097152, "small"]]}
        trace = read_trace(self.write(tmp_path / "t.json.gz", data))
        assert trace.case == {"model": "gpt2"}
        assert trace.events == [("segment_alloc", 4096, 2097152, 0), ("alloc", 4096, 300, 0)]
        assert trace.segments == [(4096, 2097152, "small")]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], "the whole: must be dict, not list"),
            ({"case": {}, "segments": []}, "events: missing"),
            ({"case": {}, "events": {}, "segments": []}, "events: must be list, not dict"),
            ({"case": {}, "events": [["alloc", 1, 2]], "segments": []}, r"events\[0\]: must be \[action, address"),
            ({"case": {}, "events": [["alloc", 1, 2, True]], "segments": []}, r"events\[0\]: must be"),
            ({"case": {}, "events": [["grow", 1, 2, 3]], "segments": []}, r"events\[0\]: unknown action 'grow'"),
            ({"case": {}, "events": [], "segments": [[1, 2, "huge"]]}, r"segments\[0\]: must be \[address, bytes"),
            (b"{", "not valid JSON"),
            (b"\xff", "not valid JSON"),
            (b"[" * 200_000, "not valid JSON"),
            (b"9" * 5000, "not valid JSON"),
        ],
    )
    def test_a_trace_of_another_form(self, data: object, message: str, tmp_path: Path) -> None:
        """The file and the place in it are named."""
        with pytest.raises(BadInputError, match=rf"t\.json\.gz: {message}"):
            read_trace(self.write(tmp_path / "t.json.gz", data))

    def test_a_file_that_is_not_packed_or_not_whole(self, tmp_path: Path) -> None:
        """Plain JSON, and a copy that broke off."""
        path = self.write(tmp_path / "t.json.gz", {"case": {}, "events": [], "segments": []})
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(BadInputError, match="not a whole gzip file"):
            read_trace(path)
        path.write_text("{}")
        with pytest.raises(BadInputError, match="not a whole gzip file"):
            read_trace(path)

    def test_a_file_that_unpacks_to_too_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thousandfold is easy to reach."""
        monkeypatch.setattr(safe_pickle, "LARGEST_TRACE", 2**20)
        with pytest.raises(BadInputError, match="more than 1048576 bytes when unpacked"):
            read_trace(self.write(tmp_path / "t.json.gz", b" " * 2**22))
