"""LoRA-FA's theorem, on the optimizer that PEFT has for it and on the gradients of a real model.

Conventions are PEFT's: W (k x m), A (r x m), B (k x r), and a layer computes x (W + s B A)^T with s = alpha / r. With g
the full gradient dL/dW, the gradient of B is g_B = s g A^T. Theorem 4.1 of the paper (arXiv 2308.03303): of all dB,

    G = g_B (A A^T)^-1 / s^2

is the one whose update of W, s dB A, is nearest to g in the Frobenius norm.

Derivation: ||s dB A - g||^2 is a convex quadratic in dB, with the gradient 2 s (s dB A - g) A^T. It is zero where
s^2 dB A A^T = s g A^T = g_B; A has full rank, so A A^T can be inverted, and dB = G. The update that it makes of W is
s G A = g A^T (A A^T)^-1 A = g P, the orthogonal projection of g onto the rows of A, whatever s is.

What PEFT's optimizer does otherwise than the theorem, each seen by a test below:

- it adds 1e-8 to the diagonal of A A^T before it inverts it;
- where bf16 is available (on every CPU it is), the product g_B (A A^T)^-1 runs under bf16 autocast: of fp32 adapters
  the projected gradient has 8 bits. float64 is exempt from autocast, which is why the theorem is tested in float64;
- the theorem is about the gradient that goes in: AdamW's moments are made of G, and what comes out is no projection;
- the inverse is made anew in each step, which the paper would keep.

The factor 1 / s^2 is the paper's. Older releases of PEFT take s of the arguments r and lora_alpha for every module,
newer ones the module's own; here both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload, training_step
from tests.analytic.runs import HAS_LORAFA, run_of

pytestmark = pytest.mark.skipif(not HAS_LORAFA, reason="this PEFT has no LoRA-FA optimizer")

FAMILIES = ("llama", "qwen3", "gpt2", "t5")
EPSILON = torch.finfo(torch.float64).eps


@dataclass
class Pair:
    """An adapted module after one step: what went in, and what the optimizer made of it."""

    path: str
    a: Any
    b: Any
    scaling: float
    full: torch.Tensor
    """dL/dW (k x m)."""
    gradient: torch.Tensor
    """dL/dB as autograd has it (k x r)."""
    state: dict[str, Any]

    @property
    def projected(self) -> torch.Tensor:
        """The gradient that the moments were made of: the first moment starts at zero, and is (1 - beta1) of it."""
        moment: torch.Tensor = self.state["exp_avg_B"]
        return moment / (1 - 0.9)


def stepped(run: RunSpec, dtype: torch.dtype = torch.float64) -> list[Pair]:
    """One step of a real model in that dtype, B off its zeros, with the gradients of the base weights beside it."""
    work = Workload.build(run, "cpu")
    model: Any = work.model.to(dtype)
    torch.manual_seed(3)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(parameter, std=0.02)
        if path.endswith("base_layer.weight"):
            parameter.requires_grad_(True)  # only to see the full gradient: dL/dW at W + s B A
    work.loss().backward()
    modules = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    full = {path: _as_rows(module, module.base_layer.weight.grad) for path, module in modules.items()}
    gradients = {path: module.lora_B["default"].weight.grad.clone() for path, module in modules.items()}
    work.optimizer.step()
    return [
        Pair(
            path, module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"],
            full[path], gradients[path], work.optimizer.state[f"{path}.lora"],
        )
        for path, module in modules.items()
    ]  # fmt: skip


def _as_rows(module: Any, gradient: torch.Tensor) -> torch.Tensor:
    """GPT-2's Conv1D has its weight as (m x k)."""
    return gradient.T if type(module.base_layer).__name__ == "Conv1D" else gradient


@pytest.fixture(scope="module", params=FAMILIES)
def pairs(request: pytest.FixtureRequest) -> list[Pair]:
    found = stepped(run_of(request.param, "lora-fa-peft", dtype="fp32"))
    assert found
    return found


def distance(pair: Pair, change: torch.Tensor) -> float:
    """How far the update of W that a change of B makes is from the full gradient."""
    return float(torch.linalg.norm(pair.scaling * change @ pair.a.detach() - pair.full))


def tolerance(pair: Pair) -> float:
    """Relative error of the projected gradient that float64 and the added 1e-8 allow for.

    The inverse of A A^T is as exact as its condition number allows; 1e-8 on the diagonal moves it by 1e-8 over the
    smallest eigenvalue, relative to itself. A factor of 100 is for the sums over m and over r.
    """
    eigenvalues = torch.linalg.eigvalsh(pair.a.detach() @ pair.a.detach().T)
    return float(100 * EPSILON * eigenvalues[-1] / eigenvalues[0] + 1e-8 / eigenvalues[0])


class TestTheorem:
    """The gradient that PEFT's optimizer goes by is the nearest to the full one, in every adapted module."""

    def test_the_gradient_of_b_is_that_of_w_through_a(self, pairs: list[Pair]) -> None:
        """Equation 3 of the paper, g_B = s g A^T: the full gradient that the rest is held to is the right one."""
        for pair in pairs:
            expected = pair.scaling * pair.full @ pair.a.detach().T
            torch.testing.assert_close(pair.gradient, expected, rtol=1e-10, atol=1e-14, msg=pair.path)

    def test_the_closed_form(self, pairs: list[Pair]) -> None:
        """g_B (A A^T)^-1 / s^2, with s of the module."""
        for pair in pairs:
            a = pair.a.detach()
            assert pair.scaling == 2  # alpha is twice the rank
            expected = torch.linalg.solve(a @ a.T, pair.gradient.T).T / pair.scaling**2
            error = torch.linalg.norm(pair.projected - expected) / torch.linalg.norm(expected)
            assert error <= tolerance(pair), pair.path

    def test_least_squares_finds_the_same(self, pairs: list[Pair]) -> None:
        """Solved from the statement alone, without the normal equations: min ||s A^T X - g^T||, with X = dB^T."""
        for pair in pairs:
            best = torch.linalg.lstsq(pair.scaling * pair.a.detach().T, pair.full.T).solution.T
            error = torch.linalg.norm(pair.projected - best) / torch.linalg.norm(best)
            assert error <= tolerance(pair), pair.path
            assert distance(pair, pair.projected) <= distance(pair, best) * (1 + tolerance(pair))

    def test_no_other_change_of_b_comes_nearer(self, pairs: list[Pair]) -> None:
        """In twenty random directions, from tiny to as large as itself; and by Pythagoras how much farther each is.

        ||s (G + D) A - g||^2 = ||s G A - g||^2 + ||s D A||^2, for the residual is orthogonal to all s D A.
        """
        generator = torch.Generator().manual_seed(7)
        for pair in pairs:
            least = distance(pair, pair.projected)
            for size in torch.logspace(-3, 0, 20, dtype=torch.float64):
                step = torch.randn(pair.b.shape, generator=generator, dtype=torch.float64)
                step *= size * torch.linalg.norm(pair.projected) / torch.linalg.norm(step)
                away = float(torch.linalg.norm(pair.scaling * step @ pair.a.detach()))
                there = distance(pair, pair.projected + step)
                assert there > least
                assert there**2 == pytest.approx(least**2 + away**2, rel=1e-6), pair.path

    def test_the_raw_gradient_of_b_is_farther(self, pairs: list[Pair]) -> None:
        """So that the projection is not idle: plain LoRA's gradient of B, at its best length, is not the nearest."""
        for pair in pairs:
            update = pair.scaling * pair.gradient @ pair.a.detach()
            length = float((update * pair.full).sum() / (update * update).sum())
            assert distance(pair, length * pair.gradient) > distance(pair, pair.projected) * (1 + tolerance(pair))

    def test_the_update_is_the_projection_onto_the_rows_of_a(self, pairs: list[Pair]) -> None:
        """Whatever the scaling: s G A = g P; and the loss does not rise along it, <g, s G A> = ||g P||^2 >= 0."""
        for pair in pairs:
            rows = torch.linalg.qr(pair.a.detach().T).Q  # (m x r), orthonormal
            onto = pair.full @ rows @ rows.T
            update = pair.scaling * pair.projected @ pair.a.detach()
            assert torch.linalg.norm(update - onto) <= tolerance(pair) * torch.linalg.norm(onto), pair.path
            assert float((pair.full * update).sum()) == pytest.approx(float((onto * onto).sum()), rel=1e-6)


class TestThePeftOptimizer:
    """What surrounds the theorem in PEFT's optimizer, as it is."""

    def test_the_step_is_adamw_on_the_projected_gradient(self) -> None:
        """The first step of bias-corrected Adam: lr G / (|G| + eps'), eps' = 1e-6 / sqrt(1 - beta2) before correction.

        With m = (1 - b1) G and v = (1 - b2) G^2 the step is lr sqrt(1 - b2) / (1 - b1) m / (sqrt(v) + 1e-6).
        """
        run = run_of("llama", "lora-fa-peft", dtype="fp32")
        before = {pair.path: pair.b.detach().clone() for pair in _unstepped(run)}
        for pair in stepped(run):
            g, b2 = pair.projected, 0.999
            step = 1e-4 * (1 - b2) ** 0.5 * g / ((1 - b2) ** 0.5 * g.abs() + 1e-6)
            torch.testing.assert_close(pair.b.detach(), before[pair.path] - step, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(pair.state["exp_avg_sq_B"], (1 - b2) * g * g, rtol=1e-9, atol=0.0)

    def test_fp32_adapters_are_projected_in_bf16(self) -> None:
        """PEFT multiplies under bf16 autocast: the projected gradient is the theorem's to 8 bits, and no better.

        Both factors and the result are rounded to 8 bits, each by at most 2^-8 relatively: the error of a sum of r
        products is at most 3 * 2^-8 of the sum of their magnitudes, and a hundredth more for what is of second order.
        """
        for pair in stepped(run_of("llama", "lora-fa-peft", dtype="fp32"), torch.float32):
            a = pair.a.detach()
            inverse = torch.linalg.inv(a.double() @ a.double().T)
            exact = pair.gradient.double() @ inverse / pair.scaling**2
            magnitude = pair.gradient.double().abs() @ inverse.abs() / pair.scaling**2
            error = (pair.projected.double() - exact).abs()
            assert bool((error <= 3 * 2**-8 * 1.01 * magnitude + 1e-12).all()), pair.path
            assert float(torch.linalg.norm(error) / torch.linalg.norm(exact)) > 1e-4, "bf16 left no trace"


def _unstepped(run: RunSpec) -> list[Pair]:
    """The pairs with the values that `stepped` starts from."""
    work = Workload.build(run, "cpu")
    model: Any = work.model.double()
    torch.manual_seed(3)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(parameter, std=0.02)
    nothing = torch.empty(0)
    return [
        Pair(
            path, module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"],
            nothing, nothing, {},
        )
        for path, module in model.named_modules() if hasattr(module, "lora_A")
    ]  # fmt: skip


class TestAIsNoTrainableState:
    """A never exists as something that is trained."""

    @pytest.mark.parametrize("method", ["lora-fa", "lora-fa-peft", "qlora-fa"])
    @pytest.mark.parametrize("optimizer", ["lorafa", "lorafa-peft", "adamw"])
    def test_five_real_steps_leave_a_as_it_was(self, method: str, optimizer: str) -> None:
        """To the bit, without gradient and without moments; B changes, and its moments have its shape."""
        work = Workload.build(run_of("llama", method, optimizer=optimizer), "cpu")
        parameters = dict(work.model.named_parameters())
        before = {path: p.detach().clone() for path, p in parameters.items() if "lora_" in path}
        for _ in range(5):
            work.loss().backward()
            for path, p in parameters.items():
                assert (p.grad is not None) == ("lora_B" in path), path
            work.optimizer.step()
            work.optimizer.zero_grad(set_to_none=True)
        for path, value in before.items():
            same = torch.equal(parameters[path], value)
            assert same == ("lora_A" in path), path
            assert parameters[path].requires_grad == ("lora_B" in path), path

    def test_the_states_of_a_pair_are_those_of_b(self) -> None:
        """Two moments for each B, of its shape and dtype; no key stands for A, though the optimizer is given it."""
        work = Workload.build(run_of("llama", "lora-fa-peft"), "cpu")
        training_step(work)
        parameters = dict(work.model.named_parameters())
        b = {path.partition("lora_B")[0] + "lora": p for path, p in parameters.items() if "lora_B" in path}
        states = work.optimizer.state
        assert set(states) == set(b)
        for name, parameter in b.items():
            state: Any = states[name]
            tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
            assert set(tensors) == {"exp_avg_B", "exp_avg_sq_B"}
            assert {value.shape for value in tensors.values()} == {parameter.shape}
            assert {value.dtype for value in tensors.values()} == {parameter.dtype}
        held = {id(p) for group in work.optimizer.param_groups for p in group["params"]}
        assert {id(p) for path, p in parameters.items() if "lora_A" in path} <= held
