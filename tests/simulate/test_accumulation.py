"""Sums of gradients under a dispatch mode cost what the profiler sees them cost without one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lorafa_prof.simulate import accumulation
from lorafa_prof.simulate.accumulation import InPlaceAccumulation
from lorafa_prof.workload.step import Workload, training_step
from tests.support.configs import tiny_run
from tests.support.profiled import allocations, kernels_of_known_size, made_by_operators
from tests.support.tracking import ModulePaths, StorageTracker

Fork = Callable[[torch.Tensor], torch.Tensor]
kept: list[torch.Tensor] = []


class Cube(torch.autograd.Function):
    """Returns gradients that Python has made, from a backward that adds tensors itself."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        square = x * x
        return grads[0] * (square + (square + square))


def keeping(y: torch.Tensor) -> torch.Tensor:
    """A hook keeps the gradient that comes first into y's sum; `+ 1` passes it on as it is."""
    kept.clear()
    shifted = y + 1
    shifted.register_hook(kept.append)
    return y.sin() * shifted.cos()


def looking(y: torch.Tensor) -> torch.Tensor:
    """A hook looks at the gradient and lets it go."""
    shifted = y + 1
    shifted.register_hook(lambda grad: None)
    return y.sin() * shifted.cos()


def retaining(y: torch.Tensor) -> torch.Tensor:
    y.retain_grad()
    return y.sin() * y.cos()


def residual(y: torch.Tensor) -> torch.Tensor:
    return y + (y.sin() + y.cos() * y).tanh()


FORKS: dict[str, Fork] = {
    "two users": lambda y: y.sin() * y.cos(),
    "three users": lambda y: y.sin() * y.cos() * y.tanh(),
    "first gradient is a view": lambda y: y.cos() * y.view(32, 8).sin().view(16, 16),
    "second gradient is a view": lambda y: y.view(32, 8).sin().view(16, 16) * y.cos(),
    "both are views": lambda y: (y.view(32, 8).sin() * y.view(32, 8).cos()).view(16, 16),
    "transposed": lambda y: y.t().sin().t() * y.cos(),
    "first gradient overlaps itself": lambda y: y.tanh() * y.sum(),
    "both users get one tensor": lambda y: y + y,
    "first gradient is another's too": lambda y: y.sin() + (y + 1),
    "residual": lambda y: residual(residual(y)),
    "a hook keeps the first": keeping,
    "a hook looks at it": looking,
    "retained": retaining,
    "written in Python": lambda y: Cube.apply(y) * y.sin() * Cube.apply(y),  # type: ignore[no-untyped-call]
    "slices": lambda y: torch.cat([y[:8].sin(), y[8:].cos()]),
    "checkpointed": lambda y: y * checkpoint(residual, y, use_reentrant=False),
    "checkpointed, reentrant": lambda y: y * checkpoint(residual, y, use_reentrant=True),
    "rows are picked": lambda y: y[torch.arange(16), torch.arange(16)] * y.sin(),
    "gathered": lambda y: y.gather(0, torch.zeros(16, 16, dtype=torch.long)) * y.sin(),
    "rows selected": lambda y: y.index_select(0, torch.zeros(16, dtype=torch.long)) * y.sin(),
    "rows are replaced": lambda y: y.index_put((torch.arange(4),), torch.ones(4, 16)) * y.sin(),
    "maximum": lambda y: y.max(1).values * y.sin(),
}  # fmt: skip


def program(fork: Fork) -> None:
    x = torch.ones(16, 16, requires_grad=True)
    (fork(x * 2) * 3).sum().backward()
    kept.clear()


def under_mode(fork: Fork, *inside: TorchDispatchMode) -> list[int]:
    """Births and deaths of storages as a dispatch mode sees them, bytes."""
    with ModulePaths(torch.nn.Identity()) as paths, StorageTracker(paths, round_up=False) as tracker:
        with contextlib.ExitStack() as stack:
            for mode in inside:
                stack.enter_context(mode)
            program(fork)
    return [event.delta for event in tracker.events if abs(event.delta) == NBYTES]


def real(fork: Fork) -> list[int]:
    """The same from the allocator, with no mode active; only tensors as large as x, the rest is scalars and indices."""
    return [event.delta for event in allocations(lambda: program(fork)) if abs(event.delta) == NBYTES]


NBYTES = 16 * 16 * 4


@pytest.mark.parametrize("name", FORKS)
def test_births_and_deaths_are_those_without_a_mode(name: str) -> None:
    """Every storage is made and freed in the order in which the allocator sees it in a real run."""
    fork = FORKS[name]
    assert under_mode(fork, InPlaceAccumulation()) == real(fork)


@pytest.mark.parametrize("name", ["two users", "rows are picked", "gathered", "rows selected", "maximum"])
def test_a_mode_alone_changes_what_is_computed(name: str) -> None:
    """What the module is for: each of these has a storage more under a plain mode."""
    fork = FORKS[name]
    assert sum(delta > 0 for delta in under_mode(fork)) > sum(delta > 0 for delta in real(fork))


STEPS: dict[str, dict[str, Any]] = {
    "full": {"family": "llama", "method": "full", "dtype": "fp32"},
    "checkpointed, with dropout": {"family": "llama", "checkpointing": "full", "dropout": 0.1},
    "encoder and decoder": {"family": "t5", "attn": "eager"},
    "LoRA-FA": {"family": "qwen3", "method": "lora-fa", "optimizer": "lorafa"},
    "tied weights": {"family": "gemma2", "method": "full", "attn": "eager"},
}


@pytest.mark.parametrize("name", STEPS)
def test_whole_steps_are_those_without_a_mode(name: str) -> None:
    """Of a real model's training step the allocator reports the same sizes in the same order, buffers of kernels
    included, whether the mode is there or not. Numbers that became tensors are left out: a mode makes them anew.
    """

    def reported(mode: contextlib.AbstractContextManager[Any]) -> list[int]:
        work = Workload.build(tiny_run(**{"method": "lora", "optimizer": "adamw"} | STEPS[name]), "cpu")
        training_step(work)

        def step() -> None:
            with mode:
                training_step(work)

        return [event.delta for event in made_by_operators(allocations(step)) if abs(event.delta) > 8]

    with kernels_of_known_size():
        assert reported(InPlaceAccumulation()) == reported(contextlib.nullcontext())


def test_meta_follows_the_cpu() -> None:
    """On meta the same sums are made in place."""
    seen = {device: Names.of(FORKS["residual"], device) for device in ("cpu", "meta")}
    assert seen["cpu"] == seen["meta"]
    assert seen["meta"].count("aten.add_.Tensor") == 6


def test_a_sum_in_the_forward_is_left_alone() -> None:
    """Even of temporaries, and with gradients off."""
    with torch.no_grad(), InPlaceAccumulation():
        x = torch.ones(3)
        total = x + x
        (x * 2) + (x * 3)
    assert x.tolist() == [1, 1, 1]
    assert total.tolist() == [2, 2, 2]


def test_gradients_are_those_without_a_mode() -> None:
    """Adding in place where somebody still reads the term would show in the values."""
    for fork in FORKS.values():
        found = []
        for mode in (contextlib.nullcontext(), InPlaceAccumulation()):
            x = torch.linspace(0, 1, 256).view(16, 16).requires_grad_()
            with mode:
                (fork(x * 2) * 3).sum().backward()
            found.append(x.grad)
        assert torch.equal(*found)  # type: ignore[arg-type]


def test_cannot_be_made_within_an_operator() -> None:
    """References counted there would be others."""
    accumulation._sole_owner.cache_clear()
    with Making(), pytest.raises(RuntimeError, match="make the mode before"):
        torch.ones(3).sin()
    InPlaceAccumulation()


class Names(TorchDispatchMode):
    """The operators that ran under it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @classmethod
    def of(cls, fork: Fork, device: str) -> list[str]:
        x = torch.ones(16, 16, requires_grad=True, device=device)
        with cls() as names, InPlaceAccumulation():
            (fork(x * 2) * 3).sum().backward()
        return names.names


class Making(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        InPlaceAccumulation()
        return func(*args, **(kwargs or {}))
