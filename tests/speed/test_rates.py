"""The time of one operation: known answers of tiles, waves, traffic and small ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.catalog import load_device
from lorafa_prof.speed.defaults import default_profile
from lorafa_prof.speed.profile import Curve, MatmulRates, TimedProduct
from lorafa_prof.speed.rates import Rates, missing
from lorafa_prof.speed.work import MatrixProduct
from tests.speed.made import attention, attention_rates, memory, product, profile

sizes = st.integers(1, 20_000)


def alone(m: int, n: int, k: int) -> float:
    """Seconds of a product's arithmetic on the round card."""
    return Rates(profile()).product_seconds(MatrixProduct(batch=1, m=m, n=n, k=k), "bf16")


class TestProducts:
    """Tiles and waves on 100 units of 1 TFLOP/s each."""

    def test_whole_waves_reach_the_sustained_rate(self) -> None:
        """100 tiles of 128 x 128: one wave, every unit busy."""
        assert alone(1280, 1280, 4096) == pytest.approx(2 * 1280 * 1280 * 4096 / 100e12)

    def test_one_tile_more_than_a_wave_costs_more_than_its_share(self) -> None:
        """A row of tiles more: 110 tiles of 128 x 128 are two waves, but smaller tiles fill the units better."""
        ideal = 2 * 1408 * 1280 * 4096 / 100e12
        assert ideal < alone(1408, 1280, 4096) <= 2 * alone(1280, 1280, 4096)

    def test_a_ragged_edge_costs_a_whole_tile(self) -> None:
        """One row beyond the tiles, with columns that no smaller tiling spreads better."""
        assert alone(1281, 1280, 4096) > alone(1280, 1280, 4096)

    def test_a_small_result_with_long_k_is_split(self) -> None:
        """(64, 64) is one tile; split along k it is not bound to one unit."""
        one_unit = 2 * 64 * 64 * 65536 / 1e12
        assert alone(64, 64, 65536) < one_unit / 5

    def test_products_of_a_small_rank_are_bound_by_memory(self) -> None:
        """(16384, 4096) by (4096, 16) on an A100 takes what reading the first matrix takes, within a tenth."""
        rates = Rates(default_profile(load_device("a100-80gb")))
        work = product(16384, 16, 4096)
        traffic = rates.traffic_seconds(work.moved_bytes) + 2e-6
        assert traffic <= rates.seconds(work) < 1.1 * traffic
        assert work.flops / rates.seconds(work) < 0.1 * 312e12

    def test_large_products_on_an_a100_are_bound_by_arithmetic(self) -> None:
        """A product of a 7B model over 16,384 tokens runs within 3 % of the rate of large ones."""
        rates = Rates(default_profile(load_device("a100-80gb")))
        work = product(16384, 4096, 4096)
        assert 0.97 < work.flops / rates.seconds(work) / 230e12 <= 1

    def test_the_floor_is_added_for_each_kernel(self) -> None:
        """Two kernels: twice the 2 us."""
        rates = Rates(profile())
        assert rates.seconds(product(1280, 1280, 4096, kernels=2)) - rates.seconds(
            product(1280, 1280, 4096)
        ) == pytest.approx(2e-6)

    def test_a_product_that_was_timed_takes_as_long_as_it_did(self) -> None:
        """And its neighbours nearly so; a far one is drawn less."""
        timed = TimedProduct(batch=1, m=1280, n=1280, k=4096, seconds=0.0, over_model=2.0)
        other = TimedProduct(batch=1, m=80, n=80, k=256, seconds=0.0, over_model=1.0)
        rates = Rates(profile(matmul={"bf16": MatmulRates(flops_per_s=100e12, timed=(timed, other))}, kernel_s=0.0))
        plain = Rates(profile(kernel_s=0.0))
        same, near, far = product(1280, 1280, 4096), product(1280, 1280, 2048), product(80, 80, 256)
        assert rates.seconds(same) / plain.seconds(same) == pytest.approx(2.0, rel=1e-3)
        assert 1.9 < rates.seconds(near) / plain.seconds(near) < 2.0
        assert rates.seconds(far) / plain.seconds(far) == pytest.approx(1.0, rel=1e-3)


class TestOthers:
    """Memory, attention, views."""

    def test_memory_takes_its_traffic_and_the_floor(self) -> None:
        """1 GB at 1 TB/s, and 2 us."""
        assert Rates(profile()).seconds(memory(10**9)) == pytest.approx(1e-3 + 2e-6)

    def test_small_kernels_do_not_reach_the_bandwidth(self) -> None:
        """A curve that was measured: 1 MB at half the rate of 1 GB."""
        rates = Rates(profile(bandwidth=Curve(((1e6, 0.5e12), (1e9, 1e12)))))
        assert rates.seconds(memory(10**6)) == pytest.approx(2e-6 + 2e-6)

    def test_a_view_keeps_the_device_idle(self) -> None:
        """It launches nothing."""
        assert Rates(profile()).seconds(memory(10**9, kernels=0)) == 0.0

    def test_attention_has_rates_of_its_own_for_the_backward(self) -> None:
        """50 and 25 TFLOP/s: four products of 2 x 1000^2 x 100, and five; a recomputed forward is a forward."""
        rates = Rates(profile(kernel_s=0.0))
        assert rates.seconds(attention(1000)) == pytest.approx(4e8 / 50e12)
        assert rates.seconds(attention(1000, phase="recompute")) == pytest.approx(4e8 / 50e12)
        assert rates.seconds(attention(1000, backward=True)) == pytest.approx(10e8 / 25e12)

    def test_causal_attention_computes_half(self) -> None:
        """Of 1000 keys a query sees 500.5 on average."""
        rates = Rates(profile(kernel_s=0.0))
        assert rates.seconds(attention(1000, causal=True)) == pytest.approx(0.5005 * 4e8 / 50e12)

    def test_attention_is_faster_for_long_sequences(self) -> None:
        """The rate rises with the number of keys."""
        rising = attention_rates(Curve(((100, 10e12), (10_000, 20e12))), Curve.level(1e12))
        rates = Rates(profile(attention={"bf16": rising}, kernel_s=0.0))
        assert rates.seconds(attention(10_000)) == pytest.approx(4e10 / 20e12)
        assert rates.seconds(attention(1000)) == pytest.approx(4e8 / (10e12 * 2**0.5))

    def test_what_is_not_known_is_told_in_a_sentence(self) -> None:
        """A dtype without a rate, a card without a bandwidth; views need neither."""
        works = [product(8, 8, 8), product(8, 8, 8, dtype="fp32"), memory(8, kind="attention", dtype="fp16")]
        assert missing(works, profile(bandwidth=None)) == (
            "no memory bandwidth of round is known",
            "no rate of matrix products in fp32 is known for round",
            "no rate of attention in fp16 is known for round",
        )
        assert missing([product(8, 8, 8, dtype="fp32", kernels=0)], profile()) == ()


class TestProperties:
    """Whatever the shape."""

    @given(sizes, sizes, sizes)
    def test_no_product_beats_the_sustained_rate(self, m: int, n: int, k: int) -> None:
        """Tiling only ever costs."""
        assert alone(m, n, k) >= 2 * m * n * k / 100e12 * (1 - 1e-9)

    @given(sizes, sizes, sizes, st.floats(1.0, 10.0))
    def test_more_of_anything_is_never_slower(self, m: int, n: int, k: int, factor: float) -> None:
        """A higher rate, a higher bandwidth, a faster cache."""
        work = product(m, n, k)
        before = Rates(profile(on_chip_bytes_per_s=2e12)).seconds(work)
        for better in (
            profile(on_chip_bytes_per_s=2e12, matmul={"bf16": MatmulRates(flops_per_s=100e12 * factor)}),
            profile(on_chip_bytes_per_s=2e12, bandwidth=Curve.level(1e12 * factor)),
            profile(on_chip_bytes_per_s=2e12 * factor),
        ):
            assert Rates(better).seconds(work) <= before * (1 + 1e-9)
