"""The paper's statements in numbers: Theorems 3.1, 4.1 and A.1, and the energy of an update (appendix E.3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from lorafa_prof.lorafa.gram import corrections
from lorafa_prof.lorafa.pairs import Pair

M, K, R = 30, 20, 5


class _Layer:
    """As much of PEFT's layer as a correction looks at."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        self.lora_A, self.lora_B = ({"x": torch.nn.Linear(*weight.shape[::-1], bias=False)} for weight in (a, b))
        self.lora_A["x"].weight, self.lora_B["x"].weight = torch.nn.Parameter(a), torch.nn.Parameter(b)
        self.scaling = {"x": scaling}


def corrected(a: torch.Tensor, b: torch.Tensor, scaling: float, full: torch.Tensor, trains: str) -> torch.Tensor:
    """The change of the trained side that the optimizer goes by, for the full gradient g (k, m)."""
    pair = Pair(path="layer", layer=_Layer(a, b, scaling), adapter="x")
    if trains == "B":
        return scaling * full @ a.T @ corrections([pair], "B", 0.0)[0]
    return corrections([pair], "A", 0.0)[0] @ (scaling * b.T @ full)


def drawn(seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


class TestTheUpdateIsTheBest:
    """Theorems 4.1 and A.1."""

    @given(seed=st.integers(0, 2**30), scaling=st.floats(0.1, 10), size=st.floats(1e-4, 1e2))
    @pytest.mark.parametrize("trains", ["A", "B"])
    def test_no_other_comes_nearer_and_the_loss_does_not_rise(
        self, trains: str, seed: int, scaling: float, size: float
    ) -> None:
        """Of all changes of that side none has an update of W nearer to g; and <g, update> = ||update||^2 >= 0."""
        a, b, full, other = drawn(seed, (R, M), (K, R), (K, M), (K, R) if trains == "B" else (R, M))

        def update(change: torch.Tensor) -> torch.Tensor:
            return scaling * (change @ a if trains == "B" else b @ change)

        best = corrected(a, b, scaling, full, trains)
        least = torch.linalg.norm(update(best) - full)
        assert torch.linalg.norm(update(best + size * other) - full) > least
        energy = update(best).square().sum()
        torch.testing.assert_close((full * update(best)).sum(), energy, rtol=1e-8, atol=1e-10)
        assert energy >= 0


class TestEnergies:
    """Appendix E.3, and Theorem 3.1: means over random A, each within five of its standard errors."""

    @staticmethod
    def assert_mean(samples: list[float], expected: float) -> None:
        values = torch.tensor(samples, dtype=torch.float64)
        error = values.std() / len(samples) ** 0.5
        assert abs(values.mean() - expected) < 5 * error
        assert error < 0.02 * expected, "too few to tell"

    def test_a_random_a_keeps_r_of_m(self) -> None:
        """E ||P_A g||^2 = (r / m) ||g||^2, for one g and normal A."""
        (full,) = drawn(0, (K, M))
        kept = []
        for seed in range(1, 600):
            a, b = drawn(seed, (R, M), (K, R))
            kept.append(float((2.0 * corrected(a, b, 2.0, full, "B") @ a).square().sum()))
        self.assert_mean(kept, R / M * float(full.square().sum()))

    def test_a_from_the_weights_singular_vectors_can_keep_nothing(self) -> None:
        """A of the leading right singular vectors, and a gradient beside them."""
        weight, b, full = drawn(0, (K, M), (K, R), (K, M))
        a = torch.linalg.svd(weight).Vh[:R].clone()
        full = full - full @ a.T @ a
        assert float((2.0 * corrected(a, b, 2.0, full, "B") @ a).square().sum()) < 1e-24 * float(full.square().sum())

    def test_what_a_frozen_a_cannot_reach(self) -> None:
        """Theorem 3.1: min over C of ||A* - C A_0||^2 has the mean r (m - r), for normal A* and A_0."""
        rest = []
        for seed in range(600):
            a, best = drawn(seed, (R, M), (R, M))
            combination = best @ a.T @ torch.linalg.inv(a @ a.T)
            rest.append(float((best - combination @ a).square().sum()))
        self.assert_mean(rest, R * (M - R))
