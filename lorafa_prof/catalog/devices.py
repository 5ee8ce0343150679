"""The device catalog: accelerators as data, one JSON file each in `devices/`, with a source for every figure.

A user may describe a further device in a file of the same format. All sizes are bytes, bandwidth is bytes per second
and peaks are dense FLOP/s (int8: operations per second); a figure that nobody has published or measured is null.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from lorafa_prof.catalog.json_files import one_line, read_json_object
from lorafa_prof.catalog.json_nodes import Node
from lorafa_prof.errors import BadInputError, UnknownNameError
from lorafa_prof.specs import DeviceSpec, require_int

#: The keys of "peak_flops". fp32 is the rate of the general-purpose cores, the others are the matrix units'.
DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8")

#: Bytes of the largest device file that is read; those of the catalog stay below 10 kB.
LARGEST_FILE = 2**20

_FOLDER = Path(__file__).resolve().with_name("devices")
_KEYS = (
    "name", "full_name", "aliases", "vendor", "architecture", "compute_capability", "multiprocessors",
    "memory", "bandwidth", "peak_flops", "context",
)  # fmt: skip
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")
_CAPABILITY = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})")
#: Bytes per second and operations per second beyond which a figure is a slip of the unit.
_BANDWIDTHS = (1e6, 1e16)
_RATES = (1e6, 1e20)


def device_names() -> list[str]:
    """Return the names of the catalog's devices, sorted; reads the folder's listing only."""
    return sorted(file.stem for file in _FOLDER.glob("*.json"))


def load_device(name: str) -> DeviceSpec:
    """Return the device called `name`: a name or alias of the catalog in any case, or the path of a device file.

    A name of the catalog is never taken for a path; write ./h100 for a file of that name.

    Raises:
        UnknownNameError: neither a device of the catalog nor a file.
        BadInputError: a file that cannot be read or does not describe a device; names the file and the key.
    """
    found = _in_catalog(name)
    if found is not None:
        return _read_device(str(found))
    if name.lower().endswith(".json") or "/" in name or "\\" in name:
        return _read_device(name)
    raise UnknownNameError("gpu", name, device_names(), "A JSON file that describes a device is taken as well.")


def _in_catalog(name: str) -> Path | None:
    """Return the catalog's file of `name`; only what is not the name of a file is looked for among the aliases."""
    key = name.strip().lower()
    # The pattern admits no separator and no leading dot, so that a name cannot reach outside the folder.
    if _FILE_NAME.fullmatch(key):
        file = _FOLDER / f"{key}.json"
        if file.is_file():
            return file
    plain = _plain(name)
    if not plain:
        return None
    return next((file for file in sorted(_FOLDER.glob("*.json")) if plain in _plain_names(file)), None)


def _plain_names(file: Path) -> set[str]:
    entry = Node(str(file), "", read_json_object(str(file))).members(_KEYS)
    names = [entry["name"], entry["full_name"], *entry["aliases"].items()]
    return {_plain(each.text()) for each in names}


def _plain(name: str) -> str:
    # "RTX 4090", "rtx-4090" and torch's "NVIDIA GeForce RTX 4090" are found alike; a path keeps its separators and
    # equals no name.
    return re.sub(r"[\s_-]", "", name.lower()).removeprefix("nvidia").removeprefix("amd")


def _read_device(path: str) -> DeviceSpec:
    where = one_line(path)
    if _size(path) > LARGEST_FILE:
        raise BadInputError(f"{where}: too large for a device file (at most {LARGEST_FILE} bytes)")
    return _device(Node(where, "", read_json_object(path)))


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):  # ValueError: a NUL in the path. The reader says what is wrong.
        return 0


def _device(root: Node) -> DeviceSpec:
    entry = root.members(_KEYS)
    for alias in entry["aliases"].items():
        alias.text()
    sources: dict[str, str] = {}
    return DeviceSpec(
        name=entry["name"].line(),
        full_name=entry["full_name"].line(),
        vendor=entry["vendor"].line(),
        architecture=entry["architecture"].line(),
        compute_capability=_capability(entry["compute_capability"]),
        multiprocessors=_multiprocessors(entry["multiprocessors"], sources),
        total_bytes=_memory(entry["memory"], sources),
        bandwidth=_bandwidth(entry["bandwidth"], sources),
        peak_flops={d: _peak(node, d, sources) for d, node in entry["peak_flops"].members(DTYPES).items()},
        context_bytes=_context(entry["context"], sources),
        sources=sources,
    )


def _capability(node: Node) -> tuple[int, int] | None:
    """Return the CUDA compute capability (major, minor); null for devices without one."""
    if node.value is None:
        return None
    match = _CAPABILITY.fullmatch(node.text())
    if match is None:
        raise BadInputError(f"{node} must be two numbers such as 8.9, or null")
    return int(match[1]), int(match[2])


def _multiprocessors(node: Node, sources: dict[str, str]) -> int | None:
    """Return the number of streaming multiprocessors (AMD: compute units)."""
    if node.value is None:
        return None
    multiprocessors = node.members(("count", "source"))
    sources["multiprocessors"] = multiprocessors["source"].text()
    return require_int(str(multiprocessors["count"]), multiprocessors["count"].value, 1, 4096)


def _memory(node: Node, sources: dict[str, str]) -> int:
    """Return the bytes that torch sees."""
    memory = node.members(("total_bytes", "marketed", "exact", "source"))
    memory["marketed"].line()
    memory["exact"].flag()
    sources["memory"] = memory["source"].text()
    return require_int(str(memory["total_bytes"]), memory["total_bytes"].value, 2**20, 2**50)


def _bandwidth(node: Node, sources: dict[str, str]) -> float | None:
    """Return the peak memory bandwidth, bytes per second."""
    if node.value is None:
        return None
    bandwidth = node.members(("bytes_per_s", "source"))
    sources["bandwidth"] = bandwidth["source"].text()
    return bandwidth["bytes_per_s"].number(_BANDWIDTHS)


def _peak(node: Node, dtype: str, sources: dict[str, str]) -> float | None:
    """Return the dense peak of one dtype, FLOP/s, held against the figure that the vendor prints."""
    if node.value is None:
        return None
    peak = node.members(("dense", "quoted", "quoted_with_sparsity", "source"))
    dense, quoted = peak["dense"].number(_RATES), peak["quoted"].number(_RATES)
    if not math.isclose(dense, quoted / 2 if peak["quoted_with_sparsity"].flag() else quoted):
        raise BadInputError(
            f"{peak['dense']} must be the quoted figure, or half of it where that counts sparsity: "
            f"it is {dense:g} beside {quoted:g}"
        )
    sources[f"peak_flops.{dtype}"] = peak["source"].text()
    return dense


def _context(node: Node, sources: dict[str, str]) -> int | None:
    """Return the bytes of context and libraries outside the allocator."""
    if node.value is None:
        return None
    context = node.members(("bytes", "source"))
    sources["context"] = context["source"].text()
    return require_int(str(context["bytes"]), context["bytes"].value, 0, 2**36)
