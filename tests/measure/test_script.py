"""Profiling from within a program: `lorafa_prof.profile` and what it leaves alone."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

import lorafa_prof
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.ledger import Category
from lorafa_prof.results import PART_FIELDS, Measurement
from tests.scripts.tiny import TOKENS, lora_llama, sequences
from tests.support.profiled import Allocation, allocations

Loop = Callable[[int], list[float]]
PLAN = {"warmup": 2, "steps": 2}
#: Warm-up, timed, one that is listened to and the traced one.
ENOUGH = 6


def mlp(width: int = 16) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, batches: int = 1) -> list[float]:
    """Losses of a few steps on the same random numbers each time."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(batches):
            loss = model(torch.randn(5, 8, generator=generator)).square().mean()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """After each test torch is as it was."""
    before = (torch.autograd.backward, torch.nn.Module.__call__, torch.autograd.profiler._enable_profiler)
    yield
    assert before == (torch.autograd.backward, torch.nn.Module.__call__, torch.autograd.profiler._enable_profiler)
    assert "__call__" not in vars(torch.nn.Sequential)
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not torch_optimizer._global_optimizer_post_hooks
    assert not torch._C._autograd._profiler_enabled()


def parts_of(seen: Measurement) -> int:
    return sum(getattr(seen.memory, name) for name in PART_FIELDS)


class TestProfile:
    """Two lines around a loop."""

    @pytest.mark.parametrize("given", [True, False])
    def test_model_and_optimizer_are_given_or_found(self, given: bool) -> None:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters())
        with lorafa_prof.profile(*((model, optimizer) if given else ()), **PLAN) as p:
            train(model, optimizer, ENOUGH)
        seen = p.measurement
        assert (seen.outcome, seen.run, seen.error, seen.unmodelled[1:]) == ("ok", None, None, ())
        assert len(seen.steps) == 2
        assert seen.parameters == {"total": 212, "trainable": 212}
        assert seen.memory is not None
        assert seen.memory.weights_bytes == 212 * 4
        assert seen.memory.optimizer_bytes == 2 * 212 * 4 + 4 * 4  # two moments, and a number of steps a tensor
        assert parts_of(seen) == seen.memory.peak_allocated_bytes
        assert seen.throughput.tokens_per_s is None
        assert Measurement.from_json(seen.to_json()).to_json() == seen.to_json()

    def test_what_is_learned_is_the_same_to_the_bit(self) -> None:
        """Losses and weights of a LoRA model, with dropout, and the random numbers that come after."""
        ended = []
        for looked_at in (False, True):
            model = lora_llama()
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.1
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            batch = {name: t.unsqueeze(0) for name, t in sequences(1)[0].items()}

            def steps(model: Any = model, optimizer: Any = optimizer, batch: Any = batch) -> list[float]:
                losses = []
                for _ in range(ENOUGH + 2):
                    loss = model(**batch).loss
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    losses.append(loss.item())
                return losses

            if looked_at:
                with lorafa_prof.profile(**PLAN) as p:
                    losses = steps()
                assert p.measurement.memory is not None
                assert {step.tokens for step in p.measurement.steps} == {TOKENS}
            else:
                losses = steps()
            ended.append((losses, [p.tolist() for p in model.parameters()], torch.rand(3).tolist()))
        assert ended[0] == ended[1]

    def test_the_peak_is_the_profiler_s(self) -> None:
        """All that torch's allocator holds in the traced step, counted from an empty one on, with batches accumulated
        and the gradients kept between steps.
        """

        def program() -> None:
            model = mlp(64)
            train(model, torch.optim.AdamW(model.parameters()), ENOUGH, batches=3)

        model = mlp(64)
        with lorafa_prof.profile(**PLAN) as p:
            train(model, torch.optim.AdamW(model.parameters()), ENOUGH, batches=3)
        assert p.measurement.memory is not None
        peaks = peaks_of_steps(allocations(program))
        others = held_by_others(p.measurement)
        assert p.measurement.memory.peak_allocated_bytes - others == peaks[ENOUGH - 1]

    def test_activations_are_those_of_the_batch_at_work(self) -> None:
        """Of accumulated batches the second is the first with gradients beside it: what its forward keeps until its
        backward are activations there too.
        """
        with lorafa_prof.profile(**PLAN) as p:
            model = mlp(64)
            train(model, torch.optim.SGD(model.parameters()), ENOUGH, batches=3)
        seen = p.measurement
        assert seen.memory is not None
        assert seen.ledger is not None
        activations = [i for i in seen.ledger.items if i.category is Category.ACTIVATIONS and i.module != "batch"]
        assert sum(i.nbytes for i in activations) >= 5 * 64 * 4

    def test_a_short_training_keeps_what_was_seen(self) -> None:
        model = mlp()
        with lorafa_prof.profile(**PLAN) as p:
            train(model, torch.optim.SGD(model.parameters()), 3)
        seen = p.measurement
        assert (len(seen.steps), seen.memory, seen.outcome) == (1, None, "ok")
        assert any("ended after 3 optimizer steps, of 2 to warm up, 2 to time" in line for line in seen.unmodelled)

    def test_without_a_training_there_is_nothing(self) -> None:
        with lorafa_prof.profile() as p:
            pass
        assert p.measurement.steps == ()
        assert "no optimizer of torch's took a step" in p.measurement.unmodelled

    def test_an_exception_comes_through(self) -> None:
        model = mlp()
        p = lorafa_prof.profile(**PLAN)

        def program() -> None:
            with p:
                train(model, torch.optim.SGD(model.parameters()), 5)  # the next step would be traced
                raise RuntimeError("the user's")

        with pytest.raises(RuntimeError, match="the user's"):
            program()
        assert (p.measurement.outcome, len(p.measurement.steps), p.measurement.memory) == ("error", 2, None)
        assert "the user's" in str(p.measurement.error)

    def test_out_of_memory_is_an_outcome(self) -> None:
        with pytest.raises(torch.OutOfMemoryError), lorafa_prof.profile() as p:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert p.measurement.outcome == "oom"

    @pytest.mark.parametrize("options", [{"warmup": 0}, {"steps": -1}, {"steps": 1.5}])
    def test_numbers_that_are_none_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(BadInputError, match="whole number"):
            lorafa_prof.profile(**options)

    def test_a_model_elsewhere_is_refused(self) -> None:
        with (
            pytest.raises(UnsupportedError, match="on meta"),
            lorafa_prof.profile(torch.nn.Linear(1, 1, device="meta")),
        ):
            pass

    def test_the_package_imports_no_torch(self) -> None:
        code = "import sys, lorafa_prof; dir(lorafa_prof); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
        with pytest.raises(AttributeError, match="no attribute 'profil'"):
            lorafa_prof.profil  # noqa: B018


class TestLoopsOfAllKinds:
    """What people do in a training loop."""

    def test_a_closure(self) -> None:
        """LBFGS runs forward and backward within its step, several times."""
        model = mlp()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
        data = torch.ones(5, 8)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(data).square().mean()
            loss.backward()
            return loss

        with lorafa_prof.profile(**PLAN) as p:
            for _ in range(ENOUGH):
                optimizer.step(closure)
        assert p.measurement.memory is not None
        assert len(p.measurement.steps) == 2
        assert parts_of(p.measurement) == p.measurement.memory.peak_allocated_bytes

    def test_several_optimizers_share_a_step(self) -> None:
        """It ends when the last of them has stepped; the states of all are named."""
        model = mlp()
        first, last = torch.optim.AdamW(model[0].parameters()), torch.optim.AdamW(model[2].parameters())
        with lorafa_prof.profile(**PLAN) as p:
            for _ in range(ENOUGH + 1):
                model(torch.ones(5, 8)).square().mean().backward()
                for optimizer in (first, last):
                    optimizer.step()
                    optimizer.zero_grad()
        seen = p.measurement
        assert seen.memory is not None
        assert seen.memory.optimizer_bytes == 2 * 212 * 4 + 4 * 4
        assert len(seen.steps) == 2
        assert parts_of(seen) == seen.memory.peak_allocated_bytes

    def test_the_largest_model_is_the_one(self) -> None:
        """A second, smaller model with an optimizer of its own is named as not looked at."""
        model, critic = mlp(), torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters())
        other = torch.optim.SGD(critic.parameters())
        with lorafa_prof.profile(**PLAN) as p:
            for _ in range(ENOUGH):
                critic(model(torch.ones(5, 8))).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                critic(model(torch.ones(5, 8)).detach()).mean().backward()
                other.step()
                other.zero_grad()
        seen = p.measurement
        assert seen.parameters == {"total": 212, "trainable": 212}
        assert len(seen.steps) == 2
        assert any("another model's parameters" in line for line in seen.unmodelled)

    def test_of_two_trainings_the_first_is_measured(self) -> None:
        first, second = mlp(16), mlp(32)
        with lorafa_prof.profile(**PLAN) as p:
            train(first, torch.optim.SGD(first.parameters()), 3)
            train(second, torch.optim.SGD(second.parameters()), 9)
        assert p.measurement.parameters == {"total": 212, "trainable": 212}
        assert len(p.measurement.steps) == 1
        assert any("first training" in line for line in p.measurement.assumptions)
        assert any("another model's parameters" in line for line in p.measurement.unmodelled)

    def test_evaluation_in_between_is_no_forward_of_the_step(self) -> None:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters())
        with lorafa_prof.profile(**PLAN) as p:
            for _ in range(ENOUGH):
                train(model, optimizer, 1)
                with torch.no_grad():
                    model(torch.ones(500, 8))
        seen = p.measurement
        assert seen.memory is not None
        assert seen.memory.peak_moment.startswith("script")

    def test_a_model_is_copied_and_pickled_meanwhile(self) -> None:
        """Nothing of ours is on it."""
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters())
        with lorafa_prof.profile(**PLAN) as p:
            for _ in range(ENOUGH):
                train(model, optimizer, 1)
                copy.deepcopy(model)(torch.ones(5, 8))
                assert b"lorafa" not in pickle.dumps((model, optimizer))
        assert p.measurement.memory is not None

    def test_a_training_that_profiles_itself_is_not_traced(self) -> None:
        """Its profiler works as without us, whether it began before our trace would or within it."""
        for begin in (1, 4, 5):
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters())
            with lorafa_prof.profile(**PLAN) as p:
                train(model, optimizer, begin)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as own:
                    train(model, optimizer, 1)
                train(model, optimizer, ENOUGH - begin)
            assert sum(event.key == "aten::addmm" for event in own.key_averages()) == 1
            if begin >= 4:
                assert p.measurement.memory is None
                assert any("no step was traced" in line for line in p.measurement.unmodelled)
            assert len(p.measurement.steps) == 2

    def test_ranges_may_be_open_when_a_record_begins_or_ends(self) -> None:
        """Of the script, around its optimizer's step and further; profilers may begin within them. torch would write
        into the profile in which a range began after that is gone.
        """
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters())
        ranges: list[Any] = []
        with lorafa_prof.profile(**PLAN) as p:
            for number in range(ENOUGH + 2):
                model(torch.ones(5, 8)).square().mean().backward()
                ranges.append(torch.profiler.record_function(f"range {number}"))
                ranges[-1].__enter__()
                optimizer.step()
                optimizer.zero_grad()
                if number % 2:
                    for _ in range(2):
                        ranges.pop().__exit__(None, None, None)
            with torch.profiler.record_function("around"), torch.profiler.profile() as own:
                train(model, optimizer, 1)
        assert p.measurement.memory is not None
        assert sum(event.key == "aten::addmm" for event in own.key_averages()) == 1

    def test_a_compiled_model_is_timed_and_not_traced(self) -> None:
        model: Any = torch.compile(mlp(), backend="eager")
        with lorafa_prof.profile(**PLAN) as p:
            train(model, torch.optim.SGD(model.parameters()), ENOUGH)
        assert len(p.measurement.steps) == 2
        assert p.measurement.memory is None
        assert any("compiled" in line for line in p.measurement.unmodelled)

    def test_a_fault_of_ours_does_not_end_a_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> None:
            raise KeyError("ours")

        monkeypatch.setattr("lorafa_prof.measure.script.tracing.names_of_gradients", broken)
        model = mlp()
        with lorafa_prof.profile(**PLAN) as p:
            losses = train(model, torch.optim.SGD(model.parameters()), ENOUGH)
        assert len(losses) == ENOUGH
        assert "before its time: KeyError" in " ".join(p.measurement.unmodelled)
        assert len(p.measurement.steps) == 2


def peaks_of_steps(events: list[Allocation]) -> list[int]:
    """The most that is there between the ends of two optimizer steps."""
    inside = [any(name.startswith("Optimizer.step#") for name in event.stack) for event in events]
    ends = [i for i in range(len(events)) if inside[i] and (i + 1 == len(events) or not inside[i + 1])]
    return [
        max(event.live for event in events[begin + 1 : end + 1]) for begin, end in zip([-1, *ends], ends, strict=False)
    ]


def held_by_others(seen: Measurement) -> int:
    """Bytes of tensors of libraries and of other tests, which the program of a test has no part in."""
    assert seen.ledger is not None
    return sum(item.nbytes for item in seen.ledger.items if item.tensor.startswith("held by"))
