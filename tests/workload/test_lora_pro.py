"""LoRA-Pro's closed forms against what defines them, and its optimizer against full fine-tuning.

The defining problems are written out in numpy for all elements at once, and solved without any formula of the paper.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.errors import ContradictionError, UnsupportedError
from lorafa_prof.workload import Workload
from lorafa_prof.workload.lora_pro import AdapterPair, LoraPro, adapter_pairs, adjusted_gradients, equivalent_gradient
from lorafa_prof.workload.models import DTYPES
from lorafa_prof.workload.step import build_model, training_step
from tests.analytic.runs import run_of

M, K, R, S = 7, 9, 3, 2.0
Matrices = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(seed: int = 0, r: int = R) -> Matrices:
    """A (r, m), B (k, r) and the gradient g (k, m) of the weight, in float64."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((r, M), (K, r), (K, M))
    a, b, g = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return a, b, g


def loras(a: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LoRA's own gradients of A and B."""
    return S * b.T @ g, S * g @ a.T


def design(a: torch.Tensor, b: torch.Tensor) -> Any:
    """The matrix of (g_A, g_B) -> s B g_A + s g_B A, for all elements in a row: (k m, r m + k r)."""
    eye = torch.eye
    of_a = torch.kron(S * b, eye(M, dtype=a.dtype))  # row-major vec(B G) = (B x I) vec(G)
    of_b = torch.kron(eye(K, dtype=a.dtype), S * a.T.contiguous())
    return torch.cat([of_a, of_b], dim=1).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_the_equivalent_gradient_is_the_nearest(seed: int) -> None:
    """No g_A and g_B whatever bring s B g_A + s g_B A nearer to g: it is numpy's least-squares solution."""
    a, b, g = drawn(seed)
    g_a, g_b = adjusted_gradients(a, b, *loras(a, b, g), S)
    matrix = design(a, b)
    best, *_ = np.linalg.lstsq(matrix, g.flatten().numpy(), rcond=None)
    ours = S * b @ g_a + S * g_b @ a
    np.testing.assert_allclose(ours.flatten().numpy(), matrix @ best, atol=1e-12)
    torch.testing.assert_close(equivalent_gradient(a, b, *loras(a, b, g), S), ours)


@pytest.mark.parametrize("seed", range(3))
def test_of_all_nearest_it_is_next_to_loras_gradients(seed: int) -> None:
    """Least squares among the minimisers: whatever can be added without changing the equivalent gradient is tried.

    Those are all directions in the null space of the linear map, found by its singular values.
    """
    a, b, g = drawn(seed)
    grad_a, grad_b = loras(a, b, g)
    g_a, g_b = adjusted_gradients(a, b, grad_a, grad_b, S)
    matrix = design(a, b)
    _, values, rows = np.linalg.svd(matrix)
    free = rows[(values > 1e-10).sum() :]  # orthonormal
    assert free.shape[0] == R * R
    away = torch.cat([(g_a - grad_a).flatten(), (g_b - grad_b).flatten()]).numpy()
    np.testing.assert_allclose(free @ away, 0, atol=1e-10)


def test_at_the_start_b_alone_moves() -> None:
    """With B = 0: g_A is 0, and g_B the projected gradient g A^T (A A^T)^-1 / s. Nothing is divided by 0."""
    a, b, g = drawn()
    b.zero_()
    g_a, g_b = adjusted_gradients(a, b, *loras(a, b, g), S)
    assert torch.equal(g_a, torch.zeros_like(g_a))
    torch.testing.assert_close(g_b, g @ a.T @ torch.linalg.inv(a @ a.T) / S)


def test_a_b_of_lower_rank() -> None:
    """One column of B a multiple of another: still the least-squares solution, and finite."""
    a, b, g = drawn()
    b[:, 2] = 2 * b[:, 0]
    g_a, g_b = adjusted_gradients(a, b, *loras(a, b, g), S)
    matrix = design(a, b)
    best, *_ = np.linalg.lstsq(matrix, g.flatten().numpy(), rcond=1e-12)
    ours = S * b @ g_a + S * g_b @ a
    np.testing.assert_allclose(ours.flatten().numpy(), matrix @ best, atol=1e-9)


def test_a_rank_as_wide_as_the_weight_is_full_fine_tuning() -> None:
    """With A and B square nothing is lost: the equivalent gradient is g itself."""
    random = torch.Generator().manual_seed(0)
    a, b, g = (torch.randn(5, 5, generator=random, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(equivalent_gradient(a, b, S * b.T @ g, S * g @ a.T, S), g)


# -- the optimizer ---------------------------------------------------------------------------------------------------


def pair_of(a: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> AdapterPair:
    """Parameters with LoRA's gradients."""
    made = AdapterPair(a=torch.nn.Parameter(a.clone()), b=torch.nn.Parameter(b.clone()), scaling=S)
    made.a.grad, made.b.grad = loras(a, b, g)
    return made


def test_adams_first_step_of_adapters() -> None:
    """Without eps Adam's first step is the sign: of the adjusted gradients, not of LoRA's."""
    a, b, g = drawn()
    pair = pair_of(a, b, g)
    LoraPro([pair], lr=0.1, eps=0.0).step()
    g_a, g_b = adjusted_gradients(a, b, *loras(a, b, g), S)
    torch.testing.assert_close(pair.a.detach(), a - 0.1 * g_a.sign())
    torch.testing.assert_close(pair.b.detach(), b - 0.1 * g_b.sign())


def test_adams_first_step_of_weights() -> None:
    """The weight moves along the projection of Adam's direction, which is the sign of the equivalent gradient."""
    a, b, g = drawn()
    pair = pair_of(a, b, g)
    rate = 1e-6
    optimizer = LoraPro([pair], lr=rate, eps=0.0, moments="weights")
    optimizer.step()
    direction = equivalent_gradient(a, b, *loras(a, b, g), S).sign()
    expected = equivalent_gradient(a, b, *loras(a, b, direction), S)
    moved = S * (pair.b @ pair.a - b @ a) / rate
    torch.testing.assert_close(moved.detach(), -expected, atol=1e-4, rtol=1e-4)
    assert optimizer.state[pair.b]["exp_avg"].shape == (K, M)
    assert pair.a not in optimizer.state


@pytest.mark.parametrize("moments", ["adapters", "weights"])
def test_a_loss_goes_down_and_gradients_stay_as_they_were(moments: Any) -> None:
    """A least-squares problem from B = 0: a hundred steps bring the weight near a target of the adapters' rank."""
    a, b, _ = drawn(1)
    target = S * drawn(2)[1] @ drawn(3)[0]
    pair = pair_of(a, torch.zeros_like(b), target)
    optimizer = LoraPro([pair], lr=0.05, moments=moments)
    losses = []
    for _ in range(300):
        loss = (S * pair.b @ pair.a - target).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        assert pair.a.grad is not None
        before = pair.a.grad.clone()
        optimizer.step()
        assert torch.equal(pair.a.grad, before)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 100


def test_what_belongs_to_no_pair_is_stepped_by_adamw() -> None:
    """As torch.optim.AdamW does it, weight decay included."""
    theirs, ours = (torch.nn.Parameter(torch.arange(1.0, 7.0)) for _ in range(2))
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    adamw, lora_pro = torch.optim.AdamW([theirs], **options), LoraPro([], [ours], **options)
    for step in range(3):
        theirs.grad, ours.grad = (torch.full((6,), 0.5 + step) for _ in range(2))
        adamw.step()
        lora_pro.step()
    torch.testing.assert_close(ours, theirs)


def test_states_can_be_saved_and_loaded() -> None:
    """As those of any optimizer of PyTorch."""
    a, b, g = drawn()
    pair, again = pair_of(a, b, g), pair_of(a, b, g)
    optimizer, other = LoraPro([pair], lr=0.1), LoraPro([again], lr=0.1)
    optimizer.step()
    with torch.no_grad():
        again.a.copy_(pair.a)
        again.b.copy_(pair.b)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    other.step()
    assert torch.equal(again.b, pair.b)


# -- on models -------------------------------------------------------------------------------------------------------


def test_every_adapter_of_a_model_is_paired() -> None:
    """Seven a layer of Llama, with PEFT's scaling alpha / r = 2; nothing else is trained."""
    model = build_model(run_of("llama", "lora-pro", layers=2), "cpu")
    pairs = list(adapter_pairs(model))
    assert len(pairs) == 14
    assert {pair.scaling for pair in pairs} == {2.0}
    paired = {id(half) for pair in pairs for half in (pair.a, pair.b)}
    assert paired == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("optimizer", ["lora-pro", "lora-pro-full"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_states_of_a_real_step(optimizer: Any, dtype: Any) -> None:
    """Two moments of each adapter, or of each adapted weight in that weight's dtype."""
    run = run_of("llama", "lora-pro", optimizer=optimizer, dtype=dtype)
    work = Workload.build(run, "cpu")
    training_step(work)
    states = [t for s in work.optimizer.state.values() for name, t in s.items() if name != "step"]
    pairs = list(adapter_pairs(work.model))
    if optimizer == "lora-pro":
        assert sum(t.numel() for t in states) == 2 * sum(p.a.numel() + p.b.numel() for p in pairs)
        assert {t.dtype for t in states} == {torch.float32}
    else:
        assert sum(t.numel() for t in states) == 2 * sum(p.a.shape[1] * p.b.shape[0] for p in pairs)
        assert {t.dtype for t in states} == {DTYPES[dtype]}
    assert all(bool(torch.isfinite(t).all()) for t in states)


@pytest.mark.parametrize(
    ("method", "optimizer", "message"),
    [
        ("lora-pro", "adamw", "LoRA-Pro is its optimizer"),
        ("lora-fa", "lora-pro", "moves A and B of one matrix together: it goes with lora-pro, lora"),
        ("full", "lora-pro-full", "it goes with lora-pro, lora"),
    ],
)
def test_what_does_not_go_together(method: str, optimizer: Any, message: str) -> None:
    """It is refused, whichever of the two is at odds."""
    with pytest.raises(ContradictionError, match=message):
        Workload.build(run_of(method=method, family="llama", optimizer=optimizer), "meta")


@pytest.mark.parametrize(
    ("method", "optimizer"), [("lora-pro", "auto"), ("lora", "lora-pro"), ("lora", "lora-pro-full")]
)
def test_adapters_of_fused_experts_are_refused(method: str, optimizer: Any) -> None:
    """They are one pair for many matrices: so say the real step and the closed forms."""
    run = run_of("mixtral", method, optimizer=optimizer)
    for refused in (lambda: Workload.build(run, "meta"), lambda: predict(run)):
        with pytest.raises(UnsupportedError, match="adapters of a single matrix"):
            refused()
