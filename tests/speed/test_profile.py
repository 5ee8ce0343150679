"""Device profiles: as files, and made of the catalog's peaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafa_prof.catalog import device_names, load_device
from lorafa_prof.errors import BadInputError
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.profile import Curve, MatmulRates, TimedProduct
from lorafa_prof.speed.profile_file import read_profile
from tests.speed.made import profile


class TestCurve:
    """A rate that depends on a size."""

    @pytest.mark.parametrize(
        ("size", "rate"), [(1.0, 2.0), (10.0, 2.0), (100.0, 4.0), (1000.0, 8.0), (1e4, 8.0), (31.6227766, 2.828427)]
    )
    def test_it_is_straight_on_logarithmic_axes_and_level_beyond(self, size: float, rate: float) -> None:
        """Known answers: at its points, halfway between two in the logarithm, and outside."""
        assert Curve(((10.0, 2.0), (100.0, 4.0), (1000.0, 8.0))).at(size) == pytest.approx(rate)

    @pytest.mark.parametrize("points", [(), ((2.0, 1.0), (1.0, 1.0)), ((1.0, 1.0), (1.0, 2.0)), ((0.0, 1.0),)])
    def test_points_that_make_no_curve_are_refused(self, points: Any) -> None:
        """None, out of order, twice the same, not positive."""
        with pytest.raises(BadInputError, match="a curve needs points"):
            Curve(points)


class TestFile:
    """What is written is read again, and nothing else is."""

    def full(self) -> dict[str, Any]:
        timed = TimedProduct(batch=1, m=8, n=8, k=8, seconds=1e-5, over_model=1.25)
        made = profile(
            matmul={"bf16": MatmulRates(flops_per_s=1e14, timed=(timed,))},
            sources={"host": "measured"}, environment={"torch": "2.13.0", "threads": 2, "clock": None},
        )  # fmt: skip
        return made.to_json()

    def written(self, tmp_path: Path, data: object) -> str:
        path = tmp_path / "card.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        return str(path)

    def test_a_profile_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """Every field, timed products and sources included."""
        data = self.full()
        assert read_profile(self.written(tmp_path, data)).to_json() == data

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("kernel_s", "2 us", r"device_profile\.kernel_s must be a number"),
            ("kernel_s", 2e6, r"device_profile\.kernel_s must be between 0 and 10"),
            ("bandwidth", {"points": [[1.0]]}, r"bandwidth\.points\[0\] must be a size and a rate"),
            ("bandwidth", {"points": [[2.0, 1e9], [1.0, 1e9]]}, "the sizes rising"),
            ("kind", "tpu", "must be cuda or cpu"),
            ("matmul", {"bf17": {}}, r"matmul\.bf17 is not a key"),
            ("matmul", {"bf16": {"flops_per_s": 100, "timed": []}}, "flops_per_s must be between"),
            ("host", {"op_s": {"forward": 1e-5}, "view_s": 0, "kernel_s": 0}, r"op_s\.backward is missing"),
            ("units", 0, "units must be between"),
            ("sources", {"host": ""}, "must have between 1 and"),
            ("speed", 1, r"device_profile\.speed is not a key"),
        ],
    )
    def test_what_is_wrong_is_told_with_file_and_key(self, tmp_path: Path, key: str, value: object, said: str) -> None:
        """A slip of the unit, a wrong type, a name that is not known."""
        data = self.full()
        data["device_profile"][key] = value
        path = self.written(tmp_path, data)
        with pytest.raises(BadInputError, match=said) as caught:
            read_profile(path)
        assert path in str(caught.value)

    def test_other_files_are_told_apart(self, tmp_path: Path) -> None:
        """A result of another command, and a profile of a later version."""
        with pytest.raises(BadInputError, match="not a device profile"):
            read_profile(self.written(tmp_path, {"predictions": []}))
        with pytest.raises(BadInputError, match="schema 2"):
            read_profile(self.written(tmp_path, {**self.full(), "schema": 2}))


class TestDefaults:
    """Profiles of cards that nobody has measured."""

    @pytest.mark.parametrize("name", device_names())
    def test_every_card_has_one_with_a_source_for_each_rate(self, name: str) -> None:
        """No rate exceeds the catalog's peak, and none is there without one."""
        device = load_device(name)
        made = default_profile(device)
        assert set(made.matmul) == {dtype for dtype, peak in device.peak_flops.items() if peak is not None}
        for dtype, rates in made.matmul.items():
            assert 0 < rates.flops_per_s <= (device.peak_flops[dtype] or 0)
            assert made.sources[f"matmul.{dtype}"]
        for dtype, attention in made.attention.items():
            peak = device.peak_flops[dtype] or 0
            curves = [attention.of(causal=c, backward=b) for c in (False, True) for b in (False, True)]
            assert all(rate <= peak for curve in curves for _, rate in curve.points)
            assert made.sources[f"attention.{dtype}"]
        assert made.bandwidth is not None
        assert device.bandwidth is not None
        assert made.bandwidth.at(1e9) < device.bandwidth
        assert {"bandwidth", "kernel_s", "latency_s", "host", "on_chip_bytes_per_s"} <= set(made.sources)
        assert not made.measured

    @pytest.mark.parametrize("name", ["t4", "v100-16gb"])
    def test_a_card_without_bf16_has_no_rate_of_it(self, name: str) -> None:
        """And not another card's."""
        made = default_profile(load_device(name))
        assert "bf16" not in made.matmul
        assert "bf16" not in made.attention
        assert "fp16" in made.matmul

    def test_published_figures_come_out(self) -> None:
        """The A100's large product in bf16 and its bandwidth, as their sources have them."""
        made = default_profile(load_device("a100-80gb"))
        assert made.matmul["bf16"].flops_per_s == pytest.approx(230e12)
        assert made.bandwidth is not None
        assert made.bandwidth.at(1e9) == pytest.approx(1.81e12, rel=1e-3)
        assert made.on_chip_bytes_per_s == pytest.approx(5120 * 1.41e9)
