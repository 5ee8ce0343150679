"""The device catalog: every figure has a source, figures of one chip agree, no user's file ends in a traceback."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.catalog import devices
from lorafa_prof.catalog.devices import DTYPES, device_names, load_device
from lorafa_prof.catalog.json_files import read_json_object
from lorafa_prof.errors import BadInputError, LorafaProfError, UnknownNameError
from lorafa_prof.specs import DeviceSpec

FOLDER = Path(devices.__file__).with_name("devices")
NAMES = [
    "a10", "a100-40gb", "a100-80gb", "a10g", "a6000", "a800-80gb", "b200", "h100", "h100-pcie", "h20", "h200", "h800",
    "l4", "l40s", "mi300x", "rtx3090", "rtx4090", "rtx5090", "rtx6000ada", "t4", "v100-16gb", "v100-32gb",
]  # fmt: skip


#: What torch does not see of the memory that is sold, in MiB.
WITHHELD_MIB = {
    "a10": 2059, "a100-40gb": 622.9375, "a100-80gb": 882, "a10g": 2069, "a6000": 615, "a800-80gb": 869, "b200": 1689,
    "h100": 912, "h100-pcie": 912, "h20": 1019, "h200": 1228, "h800": 912, "l4": 2089, "l40s": 3697, "mi300x": 16,
    "rtx3090": 452, "rtx4090": 495, "rtx5090": 666, "rtx6000ada": 655, "t4": 1472, "v100-16gb": 254, "v100-32gb": 274,
}  # fmt: skip
#: Cards whose context is cut to whole MiB; of the others it is rounded.
CUT = ("rtx4090", "rtx5090")


def entry_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return loaded


def write(folder: Path, content: object) -> str:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


@pytest.fixture
def entry() -> dict[str, Any]:
    return entry_of("rtx4090")


class TestTheCatalog:
    """What the files say."""

    def test_the_devices_are_those_of_the_contract(self) -> None:
        """No file is missing and none is there by accident."""
        assert device_names() == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_a_file_loads_under_its_own_name(self, name: str) -> None:
        """The name inside the file is the file's."""
        spec = load_device(name)
        assert isinstance(spec, DeviceSpec)
        assert spec.name == name
        assert spec.vendor == ("amd" if name == "mi300x" else "nvidia")
        assert (spec.compute_capability is None) == (spec.vendor == "amd")

    @pytest.mark.parametrize("name", NAMES)
    def test_every_figure_has_a_source(self, name: str) -> None:
        """And nothing has one that is not there."""
        spec = load_device(name)
        figures = {"memory", "bandwidth", *(f"peak_flops.{d}" for d, peak in spec.peak_flops.items() if peak)}
        if spec.context_bytes is not None:
            figures.add("context")
        if spec.multiprocessors is not None:
            figures.add("multiprocessors")
        assert set(spec.sources) == figures
        assert all(len(source) >= 20 for source in spec.sources.values())

    @pytest.mark.parametrize("name", NAMES)
    def test_a_source_can_be_followed(self, name: str) -> None:
        """Published figures name a document with its address; a report, or a count, quotes what was printed."""
        for key, source in load_device(name).sources.items():
            if key not in ("memory", "multiprocessors", "context"):
                assert re.search(r"https://\S+", source), key
            else:
                assert re.search(r"\d", source), key

    @pytest.mark.parametrize("name", NAMES)
    def test_dense_is_what_the_vendor_prints_or_half_of_it(self, name: str) -> None:
        """Half exactly where the printed figure counts sparsity, and the source says so."""
        for dtype, peak in entry_of(name)["peak_flops"].items():
            if peak is not None:
                assert peak["dense"] == peak["quoted"] / (2 if peak["quoted_with_sparsity"] else 1), dtype
                assert not peak["quoted_with_sparsity"] or "parsity" in peak["source"], dtype

    @pytest.mark.parametrize("name", NAMES)
    def test_torch_sees_a_little_less_than_is_sold(self, name: str) -> None:
        """ECC and the driver take up to a tenth, of each card so much; vendors' GB of memory chips are 2**30 bytes, the
        H200's too.
        """
        memory = entry_of(name)["memory"]
        sold = int(re.match(r"\d+(?= GB )", memory["marketed"])[0])  # type: ignore[index]
        assert sold * 1024 - memory["total_bytes"] / 2**20 == WITHHELD_MIB[name]
        assert WITHHELD_MIB[name] < 0.1 * sold * 1024

    @pytest.mark.parametrize("name", NAMES)
    def test_an_inexact_total_says_how_it_was_rounded(self, name: str) -> None:
        """Exact totals are bytes that were printed; the others are whole MiB, and their source says why."""
        memory = entry_of(name)["memory"]
        if memory["exact"]:
            assert str(memory["total_bytes"]) in memory["source"]
        else:
            assert memory["total_bytes"] % 2**20 == 0
            assert "whole MiB" in memory["source"]

    @pytest.mark.parametrize("name", NAMES)
    def test_a_total_in_a_source_is_never_smaller(self, name: str) -> None:
        """Where reports differ the smallest counts: a prediction must not promise memory that a driver withholds."""
        memory = entry_of(name)["memory"]
        # With ECC switched on this board is another device; its source says what torch sees then.
        text = memory["source"].partition("With ECC on")[0]
        reported = [int(n) * 2**20 for n in re.findall(r"\b(\d{5,6}) ?(?:MiB|MB)", text)]
        assert all(n >= memory["total_bytes"] - 2**20 for n in reported)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_context_is_the_derivation_in_its_source(self, name: str) -> None:
        """Process minus allocated minus reserved, recomputed from the figures quoted, in whole MiB."""
        context = entry_of(name)["context"]
        if context is None:
            return
        derivation = re.search(r"([\d.]+) GiB - ([\d.]+) GiB - ([\d.]+) (GiB|MiB)", context["source"])
        assert derivation is not None
        process, allocated, reserved = (float(derivation[i]) for i in (1, 2, 3))
        held = reserved if derivation[4] == "GiB" else reserved / 1024
        mebibytes = (process - allocated - held) * 1024
        assert context["bytes"] == (math.floor(mebibytes) if name in CUT else round(mebibytes)) * 2**20

    def test_names_and_aliases_are_unambiguous(self) -> None:
        """However they are written."""
        seen: dict[str, str] = {}
        for name in NAMES:
            entry = entry_of(name)
            for called in {devices._plain(n) for n in (name, entry["full_name"], *entry["aliases"])}:
                assert seen.setdefault(called, name) == name
        assert len(seen) > 2 * len(NAMES)


class TestRelations:
    """Figures that physics or the vendor ties together."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [("a800-80gb", "a100-80gb"), ("a100-40gb", "a100-80gb"), ("h800", "h100"), ("h200", "h100"),
         ("v100-16gb", "v100-32gb")],
    )  # fmt: skip
    def test_boards_with_one_chip_compute_alike(self, one: str, other: str) -> None:
        """Memory differs, or what is left of NVLink; the arithmetic does not."""
        assert load_device(one).peak_flops == load_device(other).peak_flops

    @pytest.mark.parametrize("name", NAMES)
    def test_dtypes_without_a_fast_path_are_unknown(self, name: str) -> None:
        """No bf16 or tf32 before Ampere, no fp8 before Ada; fp16 and fp32 are everywhere."""
        spec = load_device(name)
        capability = spec.compute_capability or (9, 4)
        assert (spec.peak_flops["bf16"] is None) == (capability < (8, 0))
        assert (spec.peak_flops["fp8"] is None) == (capability < (8, 9))
        assert spec.peak_flops["tf32"] is None or capability >= (8, 0)
        assert spec.peak_flops["fp16"] is not None
        assert spec.peak_flops["fp32"] is not None

    @pytest.mark.parametrize("name", NAMES)
    def test_halving_the_width_doubles_the_rate(self, name: str) -> None:
        """Matrix units: tf32 is half of bf16, fp8 twice; as printed, so within 2 %."""
        peaks = load_device(name).peak_flops
        assert tuple(peaks) == DTYPES
        bf16, tf32, fp8 = peaks["bf16"], peaks["tf32"], peaks["fp8"]
        assert bf16 is None or bf16 == peaks["fp16"]
        assert bf16 is None or tf32 is None or tf32 == pytest.approx(bf16 / 2, rel=0.025)
        assert bf16 is None or fp8 is None or fp8 == pytest.approx(2 * bf16, rel=0.025)

    @pytest.mark.parametrize("name", ["rtx3090", "rtx4090", "rtx5090", "a10g"])
    def test_consumer_chips_accumulate_in_fp32_at_half_rate(self, name: str) -> None:
        """What PyTorch's matmul uses is twice the plain fp32 rate there, a quarter of int8's."""
        peaks = load_device(name).peak_flops
        fp16, fp32, int8 = peaks["fp16"], peaks["fp32"], peaks["int8"]
        assert fp16 is not None
        assert fp32 is not None
        assert int8 is not None
        assert fp16 == pytest.approx(2 * fp32, rel=0.01)
        assert int8 / fp16 == pytest.approx(2 if name == "a10g" else 4, rel=0.01)


class TestNames:
    """How a device is found."""

    @pytest.mark.parametrize(
        ("called", "name"),
        [
            ("RTX4090", "rtx4090"), ("rtx 4090", "rtx4090"), ("4090", "rtx4090"), (" h100 ", "h100"),
            ("GeForce_RTX_3090", "rtx3090"), ("A100-SXM4-80GB", "a100-80gb"), ("H100-SXM", "h100"),
        ],
    )  # fmt: skip
    def test_spelling_does_not_matter(self, called: str, name: str) -> None:
        """Case, blanks, dashes and underscores."""
        assert load_device(called).name == name

    @pytest.mark.parametrize(
        ("called", "name"),
        [
            ("NVIDIA GeForce RTX 5090", "rtx5090"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA A10G", "a10g"),
            ("NVIDIA A800-SXM4-80GB", "a800-80gb"), ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"), ("NVIDIA H20", "h20"),
            ("NVIDIA B200", "b200"), ("Tesla T4", "t4"),
            ("Tesla V100-SXM2-32GB", "v100-32gb"), ("NVIDIA RTX A6000", "a6000"), ("NVIDIA L40S", "l40s"),
            ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"), ("AMD Instinct MI300X", "mi300x"),
        ],
    )  # fmt: skip
    def test_the_name_that_torch_gives_is_understood(self, called: str, name: str) -> None:
        """torch.cuda.get_device_name, so that a measured run finds its own device."""
        assert load_device(called).name == name

    @pytest.mark.parametrize(
        ("called", "offered"),
        [("a100", ["a100-40gb", "a100-80gb"]), ("v100", ["v100-16gb", "v100-32gb"]), ("rtx4091", ["rtx4090"])],
    )
    def test_an_unknown_name_is_answered_with_the_nearest(self, called: str, offered: list[str]) -> None:
        """Those that it begins come first."""
        with pytest.raises(UnknownNameError) as raised:
            load_device(called)
        assert raised.value.nearest[: len(offered)] == offered
        assert offered[0] in str(raised.value)

    @pytest.mark.parametrize("called", ["", " ", "nvidia", "x" * 5000, "a\0b", "../devices", "\ud800", "h100\nh100"])
    def test_nonsense_is_one_line(self, called: str) -> None:
        """Whatever was typed."""
        with pytest.raises(BadInputError) as raised:
            load_device(called)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 500

    def test_a_name_reads_one_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only an alias is looked for in the others."""
        read: list[str] = []

        def recorded(path: str) -> dict[str, Any]:
            read.append(Path(path).name)
            return read_json_object(path)

        monkeypatch.setattr(devices, "read_json_object", recorded)
        load_device("h200")
        assert read == ["h200.json"]


class TestUserFiles:
    """A file of a user's: read like the catalog's, refused in one line."""

    def test_the_format_of_the_catalog_is_accepted(self, tmp_path: Path, entry: dict[str, Any]) -> None:
        """A copy of a catalog file under another name loads the same."""
        assert load_device(write(tmp_path, entry)) == load_device("rtx4090")

    def test_unknown_figures_may_be_null(self, tmp_path: Path, entry: dict[str, Any]) -> None:
        """They become None, without a source."""
        for key in ("bandwidth", "context", "compute_capability", "multiprocessors"):
            entry[key] = None
        entry["peak_flops"] = dict.fromkeys(DTYPES)
        spec = load_device(write(tmp_path, entry))
        assert (spec.bandwidth, spec.context_bytes, spec.compute_capability) == (None, None, None)
        assert spec.multiprocessors is None
        assert set(spec.peak_flops.values()) == {None}
        assert set(spec.sources) == {"memory"}

    @pytest.mark.parametrize(
        ("path", "value", "named"),
        [
            (["memory", "total_bytes"], -1, "memory.total_bytes"),
            (["memory", "total_bytes"], 0, "memory.total_bytes"),
            (["memory", "total_bytes"], 24, "memory.total_bytes"),
            (["memory", "total_bytes"], 10**30, "memory.total_bytes"),
            (["memory", "total_bytes"], 2.5e10, "memory.total_bytes"),
            (["memory", "total_bytes"], True, "memory.total_bytes"),
            (["memory", "total_bytes"], None, "memory.total_bytes"),
            (["memory", "total_bytes"], "24GiB", "memory.total_bytes"),
            (["memory", "exact"], 1, "memory.exact"),
            (["memory", "source"], "", "memory.source"),
            (["memory", "source"], " ", "memory.source"),
            (["memory", "source"], "x" * 5000, "memory.source"),
            (["memory", "marketed"], 24, "memory.marketed"),
            (["memory"], None, "memory"),
            (["memory"], [], "memory"),
            (["bandwidth", "bytes_per_s"], -1.0, "bandwidth.bytes_per_s"),
            (["bandwidth", "bytes_per_s"], 1008, "bandwidth.bytes_per_s"),
            (["bandwidth", "bytes_per_s"], 1e300, "bandwidth.bytes_per_s"),
            (["bandwidth", "bytes_per_s"], [1], "bandwidth.bytes_per_s"),
            (["peak_flops", "bf16", "dense"], 165.2, "peak_flops.bf16.dense"),
            (["peak_flops", "bf16", "dense"], 330.4e12, "peak_flops.bf16.dense"),
            (["peak_flops", "bf16", "quoted"], False, "peak_flops.bf16.quoted"),
            (["peak_flops", "bf16", "quoted_with_sparsity"], True, "peak_flops.bf16.dense"),
            (["peak_flops", "bf16", "quoted_with_sparsity"], "no", "peak_flops.bf16.quoted_with_sparsity"),
            (["peak_flops", "bf16"], 165.2e12, "peak_flops.bf16"),
            (["peak_flops"], None, "peak_flops"),
            (["context", "bytes"], -5, "context.bytes"),
            (["context", "bytes"], 2**40, "context.bytes"),
            (["compute_capability"], "eight", "compute_capability"),
            (["compute_capability"], 8.9, "compute_capability"),
            (["compute_capability"], [8, 9], "compute_capability"),
            (["aliases"], "4090", "aliases"),
            (["aliases"], ["4090", 7], "aliases[1]"),
            (["name"], "", "name"),
            (["name"], "a\nb", "name"),
            (["name"], None, "name"),
            (["vendor"], {}, "vendor"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, tmp_path: Path, entry: dict[str, Any], path: list[str], value: object, named: str
    ) -> None:
        """By file and key, in one short line."""
        inner = entry
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(BadInputError) as raised:
            load_device(write(tmp_path, entry))
        assert f"mine.json: {named} " in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        "path",
        [["name"], ["context"], ["memory", "exact"], ["peak_flops", "fp8"], ["peak_flops", "bf16", "source"]],
    )
    def test_a_missing_and_a_misspelt_key_are_named(
        self, tmp_path: Path, entry: dict[str, Any], path: list[str]
    ) -> None:
        """A misspelt one would otherwise pass for one that is not given."""
        whole = copy.deepcopy(entry)
        inner, complete = entry, whole
        for key in path[:-1]:
            inner, complete = inner[key], complete[key]
        del inner[path[-1]]
        with pytest.raises(BadInputError, match=re.escape(f"mine.json: {'.'.join(path)} is missing")):
            load_device(write(tmp_path, entry))
        complete[f"{path[-1]}x"] = 1
        with pytest.raises(BadInputError, match=re.escape(f"mine.json: {'.'.join(path)}x is not a key")):
            load_device(write(tmp_path, whole))

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
    def test_numbers_that_are_none_are_refused(self, tmp_path: Path, entry: dict[str, Any], number: str) -> None:
        """JSON of other tools may hold them."""
        text = json.dumps(entry).replace(str(entry["bandwidth"]["bytes_per_s"]), number)
        with pytest.raises(BadInputError, match=r"mine\.json: bandwidth"):
            load_device(write(tmp_path, text))

    @pytest.mark.parametrize(
        "text",
        ["", "{", "nul", "[]", "3", '"h100"', "{}", '{"name": "a", "name": "b"}', "[" * 100_000, '{"a":' * 100_000,
         " " * (2**20 + 1), "\ufeff{}"],
        ids=range(12),
    )  # fmt: skip
    def test_what_is_no_device_is_refused(self, tmp_path: Path, text: str) -> None:
        """Broken, empty, of another kind, nested without end, too large."""
        with pytest.raises(BadInputError, match=r"mine\.json: ") as raised:
            load_device(write(tmp_path, text))
        assert "\n" not in str(raised.value)

    def test_a_folder_and_a_file_that_is_not_there_are_refused(self, tmp_path: Path) -> None:
        """As paths, not as unknown names."""
        for path in (str(tmp_path), str(tmp_path / "none.json"), "none.json", "x/" * 3000):
            with pytest.raises(BadInputError) as raised:
                load_device(path)
            assert not isinstance(raised.value, UnknownNameError)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        """Such as a model's weights."""
        path = tmp_path / "weights.json"
        path.write_bytes(b"\x80\x81\xff\x00" * 10)
        with pytest.raises(BadInputError, match=r"weights\.json: "):
            load_device(str(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: object, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a parsed file, as the keys that lead there."""
    found = [place] if place else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [deeper for key, inner in pairs for deeper in places(inner, (*place, key))]


def device_or_message(name: str) -> DeviceSpec | str:
    try:
        return load_device(name)
    except LorafaProfError as error:
        return str(error)


PLACES = places(entry_of("rtx4090"))


class TestFuzz:
    """Whatever JSON a file holds, the answer is a device or an error of the project's."""

    @given(value=JSON)
    def test_any_json(self, tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
        """As the whole file."""
        path = write(tmp_path_factory.getbasetemp(), value)
        with pytest.raises(LorafaProfError):
            load_device(path)

    @given(place=st.sampled_from(PLACES), value=JSON)
    def test_any_json_in_place_of_a_value(
        self, tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: object
    ) -> None:
        """Inside a file that is right otherwise; what comes through is usable."""
        entry = entry_of("rtx4090")
        inner: Any = entry
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        spec = device_or_message(write(tmp_path_factory.getbasetemp(), entry))
        if isinstance(spec, str):
            assert "\n" not in spec
            return
        assert 2**20 <= spec.total_bytes <= 2**50
        figures = [spec.bandwidth, *spec.peak_flops.values()]
        assert all(figure is None or (math.isfinite(figure) and figure > 0) for figure in figures)

    @given(name=st.text(max_size=30))
    def test_any_name(self, name: str) -> None:
        """Typed at the command line."""
        found = device_or_message(name)
        assert "\n" not in found if isinstance(found, str) else found.name in NAMES
