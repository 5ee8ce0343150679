"""Reading of a device profile from a file: strict, with one clear line for whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lorafa_prof.catalog.json_files import one_line, read_json_object
from lorafa_prof.catalog.json_nodes import Node
from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import require_int
from lorafa_prof.speed.profile import (
    DTYPES,
    HOST_PHASES,
    SCHEMA,
    AttentionRates,
    Curve,
    DeviceProfile,
    HostTimes,
    MatmulRates,
    TimedProduct,
)

#: Bytes of the largest file that is read; a measured profile has some 20 kB.
LARGEST_FILE = 2**22
_KEYS = tuple(field.name for field in fields(DeviceProfile))
_PRODUCT_KEYS = tuple(field.name for field in fields(TimedProduct))
_ATTENTION_KEYS = tuple(field.name for field in fields(AttentionRates))
#: Beyond these a figure is a slip of the unit.
_RATES, _BYTES_PER_S, _SECONDS, _SIZES = (1e6, 1e20), (1e6, 1e16), (0.0, 10.0), (1e-6, 1e18)
_RATIOS = (1e-3, 1e3)
_LONGEST_KEY = 60
_FILE_NAME = re.compile(r"[/\\]|\.json$", re.IGNORECASE)


def read_profile(path: str) -> DeviceProfile:
    """Return the profile in a file that `calibrate` wrote.

    Raises:
        BadInputError: not such a file; the text names the file and the key.
    """
    return profile_from_json(one_line(path), read_json_object(path, largest=LARGEST_FILE, what="a device profile"))


def profile_from_json(where: str, data: Mapping[str, Any]) -> DeviceProfile:
    """Return the profile that `DeviceProfile.to_json` made plain data of; `where` is named in messages.

    Raises:
        BadInputError: not a profile, or one of another schema.
    """
    if "device_profile" not in data:
        raise BadInputError(f"{where}: not a device profile (lorafa-prof calibrate -o FILE writes one)")
    root = Node(where, "", dict(data)).members(("schema", "device_profile"))
    schema = root["schema"].value
    if schema != SCHEMA:
        raise BadInputError(f"{where}: a device profile of schema {schema!r}; this version reads schema {SCHEMA}")
    entry = root["device_profile"].members(_KEYS)
    kind = entry["kind"].line()
    if kind not in ("cuda", "cpu"):
        raise BadInputError(f"{entry['kind']} must be cuda or cpu")
    return DeviceProfile(
        name=_name(entry["name"]),
        full_name=entry["full_name"].line(),
        kind="cuda" if kind == "cuda" else "cpu",
        measured=entry["measured"].flag(),
        peak_flops={d: _or_none(node, _RATES) for d, node in entry["peak_flops"].some_of(DTYPES).items()},
        matmul={d: _matmul(node) for d, node in entry["matmul"].some_of(DTYPES).items()},
        attention={d: _attention(node) for d, node in entry["attention"].some_of(DTYPES).items()},
        bandwidth=None if entry["bandwidth"].value is None else _curve(entry["bandwidth"], _BYTES_PER_S),
        units=None if entry["units"].value is None else _count(entry["units"], 4096),
        on_chip_bytes_per_s=_or_none(entry["on_chip_bytes_per_s"], _BYTES_PER_S),
        kernel_s=entry["kernel_s"].number(_SECONDS),
        latency_s=entry["latency_s"].number(_SECONDS),
        host=_host(entry["host"]),
        interconnect_bytes_per_s=_or_none(entry["interconnect_bytes_per_s"], _BYTES_PER_S),
        sources={key: node.text() for key, node in _free(entry["sources"]).items()},
        environment={key: _scalar(node) for key, node in _free(entry["environment"]).items()},
    )


def _name(node: Node) -> str:
    """Return a card's name; a file of that name is never read in its place."""
    name = node.line()
    if _FILE_NAME.search(name):
        raise BadInputError(f"{node} must be the name of a device, not of a file")
    return name


def _or_none(node: Node, limits: tuple[float, float]) -> float | None:
    return None if node.value is None else node.number(limits)


def _count(node: Node, most: int = 2**40) -> int:
    return require_int(str(node), node.value, 1, most)


def _curve(node: Node, rates: tuple[float, float]) -> Curve:
    points = []
    for point in node.members(("points",))["points"].items():
        pair = list(point.items())
        if len(pair) != 2:
            raise BadInputError(f"{point} must be a size and a rate")
        points.append((pair[0].number(_SIZES), pair[1].number(rates)))
    try:
        return Curve(tuple(points))
    except BadInputError as error:
        raise BadInputError(f"{node}: {error}") from error


def _matmul(node: Node) -> MatmulRates:
    entry = node.members(("flops_per_s", "timed"))
    timed = tuple(_timed(each) for each in entry["timed"].items())
    return MatmulRates(flops_per_s=entry["flops_per_s"].number(_RATES), timed=timed)


def _timed(node: Node) -> TimedProduct:
    entry = node.members(_PRODUCT_KEYS)
    return TimedProduct(
        **{key: _count(entry[key]) for key in ("batch", "m", "n", "k")},
        seconds=entry["seconds"].number(_SECONDS),
        over_model=entry["over_model"].number(_RATIOS),
    )


def _attention(node: Node) -> AttentionRates:
    entry = node.members(_ATTENTION_KEYS)
    return AttentionRates(**{key: _curve(each, _RATES) for key, each in entry.items()})


def _host(node: Node) -> HostTimes:
    entry = node.members(("op_s", "view_s", "kernel_s"))
    return HostTimes(
        op_s={phase: each.number(_SECONDS) for phase, each in entry["op_s"].members(HOST_PHASES).items()},
        view_s=entry["view_s"].number(_SECONDS),
        kernel_s=entry["kernel_s"].number(_SECONDS),
    )


def _free(node: Node) -> dict[str, Node]:
    """Return the members of an object whose keys are not known beforehand."""
    if not isinstance(node.value, dict):
        raise node.wrong("an object")
    long = next((key for key in node.value if len(key) > _LONGEST_KEY or not key.isprintable()), None)
    if long is not None:
        raise BadInputError(f"{node}: the key {one_line(long, _LONGEST_KEY)} is too long or not printable")
    return node.members(tuple(node.value))


def _scalar(node: Node) -> str | int | float | None:
    value = node.value
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    return node.text()
