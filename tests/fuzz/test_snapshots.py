"""Memory snapshots and traces that somebody else recorded: read as data and replayed, or refused; nothing is run."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import pickletools
import random
from pathlib import Path
from typing import Any

from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.simulate.snapshots.recorded import RecordedRun
from tests.fuzz.feeding import HOSTILE, SEEDS, altered, call, damaged, fuzz, read_or_refused


def entry(action: str, address: int, size: int) -> dict[str, Any]:
    where = "device_free" if action == "oom" else "addr"
    frame = {"name": "forward", "filename": "model.py", "line": 12}
    return {"action": action, where: address, "size": size, "stream": 0, "time_us": address, "frames": [frame]}


def recorded() -> dict[str, Any]:
    """A snapshot of a segment, three blocks in it, one of them freed, and an allocation that failed."""
    block = {"address": 4096, "size": 512, "requested_size": 300, "state": "active_allocated", "frames": []}
    segment = {
        "device": 0, "address": 4096, "total_size": 2**21, "allocated_size": 1024, "active_size": 1024, "stream": 0,
        "requested_size": 900, "segment_type": "small", "segment_pool_id": (0, 0), "is_expandable": False,
        "frames": [], "blocks": [block, block | {"address": 4608}],
    }  # fmt: skip
    trace = [
        entry("segment_alloc", 4096, 2**21), entry("alloc", 4096, 512), entry("alloc", 4608, 512),
        entry("alloc", 5120, 512), entry("free_requested", 5120, 512), entry("free_completed", 5120, 512),
        entry("oom", 99, 700),
    ]  # fmt: skip
    return {"segments": [segment], "device_traces": [trace, []], "allocator_settings": {"max_split_size": -1}}


EVENTS = [[each["action"], each.get("addr", 99), each["size"], 0] for each in recorded()["device_traces"][0]]
TRACE = {"case": {"model": "x"}, "events": EVENTS, "segments": [[4096, 2**21, "small"]]}
PICKLES = [pickle.dumps(recorded(), protocol) for protocol in (2, 4)]
#: Opcodes with arguments that make them whole, those that run code among them.
OPCODES = [bytes([ord(code.code)]) for code in pickletools.opcodes] + [
    b"cos\nsystem\n", b"X\x01\x00\x00\x00x", b"\x8c\x02os\x8c\x06system\x93", b"K\x01", b"h\x00", b"q\x00",
    b"r\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x95" + b"\x00" * 8, b"(ios\nsystem\n", b"\x8a\xff" + b"\x01" * 255,
]  # fmt: skip
SETTINGS = [AllocatorSettings.parse(text) for text in ("", "expandable_segments:True", "max_split_size_mb:64")]


def read_and_replay(folder: Path, name: str, data: bytes, chance: random.Random) -> None:
    path = folder / name
    path.write_bytes(data)
    run = read_or_refused(lambda: RecordedRun.read(str(path), chance.choice((0, 0, 0, 1, -1, 7))))
    if run is not None:
        read_or_refused(lambda: run.replay(chance.choice(SETTINGS), chance.choice((None, 2**21, 2**34))))


@fuzz(1000, seed=SEEDS)
def test_damaged_pickles(folder: Path, seed: int) -> None:
    """Bytes of a snapshot are changed, cut out, doubled."""
    chance = random.Random(seed)
    read_and_replay(folder, "run.pickle", damaged(chance.choice(PICKLES), chance), chance)


@fuzz(700, seed=SEEDS)
def test_programs(folder: Path, seed: int) -> None:
    """Any opcodes in any order: a pickle is a program, and here none is run."""
    chance = random.Random(seed)
    program = b"".join(chance.choice(OPCODES) for _ in range(chance.randint(0, 30)))
    read_and_replay(folder, "run.pickle", b"\x80\x04" + program + b".", chance)


@fuzz(700, seed=SEEDS)
def test_snapshots_with_other_values(folder: Path, seed: int) -> None:
    """What a whole pickle holds is somebody else's as well."""
    chance = random.Random(seed)
    data = altered(recorded(), chance)
    if chance.random() < 0.3 and isinstance(data, dict) and isinstance(data.get("device_traces"), list):
        data["device_traces"].append(copy.deepcopy(chance.choice(HOSTILE)))
    read_and_replay(folder, "run.pickle", pickle.dumps(data, 4), chance)


@fuzz(400, seed=SEEDS)
def test_traces(folder: Path, seed: int) -> None:
    """The compressed JSON of a trace: other values, other bytes within, other bytes of the compressed file."""
    chance = random.Random(seed)
    text = json.dumps(altered(TRACE, chance) if chance.random() < 0.5 else TRACE).encode()
    if chance.random() < 0.3:
        text = damaged(text, chance)
    packed = gzip.compress(text, 1)
    read_and_replay(folder, "run.json.gz", damaged(packed, chance) if chance.random() < 0.3 else packed, chance)


@fuzz(150, seed=SEEDS)
def test_the_command(folder: Path, seed: int) -> None:
    """`replay` as it is called, with settings and sizes that nobody would give."""
    chance = random.Random(seed)
    (folder / "run.pickle").write_bytes(
        damaged(chance.choice(PICKLES), chance, 2) if chance.random() < 0.5 else PICKLES[0]
    )
    texts = [str(value) for value in HOSTILE] + ["24GiB", "1MiB", "max_split_size_mb:64", "roundup_power2_divisions:4"]
    args = ["replay", "run.pickle"]
    for name in ("--cap", "--alloc-conf", "--device", "--format"):
        if chance.random() < 0.4:
            args += [name, chance.choice(texts)]
    call(args)
