"""How long the host takes to issue operations: real steps of a model so small that nothing else takes time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafa_prof.calibrate.kernels import Deadline
from lorafa_prof.catalog import spec_from_config
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.speed.profile import HOST_PHASES, HostTimes
from lorafa_prof.workload import Workload, training_step

#: A model whose kernels are the smallest there are, with adapters on all of its layers.
TINY = {
    "model_type": "llama", "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
#: Steps before any is timed, and such as a median needs at least and at most.
WARMUP, FEWEST, MOST = 3, 3, 30
#: Tensors of a list, of which a card's kernel takes 110 at a time: one kernel, and ten.
FEW, MANY = 110, 1100
REPEATS = 100


def host_times(device: str, deadline: Deadline, clock: Callable[[], float] = time.perf_counter) -> HostTimes:
    """Return the seconds an operation, by phase, of LoRA's step; Python, modules and autograd included."""
    work = Workload.build(_run(), device)
    for _ in range(WARMUP):
        training_step(work)
    operations, views = _counted(work)
    times = _timed(work, deadline, clock)
    view_s = _view_seconds(device, clock)
    return HostTimes(
        op_s={
            phase: max(times[phase] - views[phase] * view_s, 0.0) / max(operations[phase], 1) for phase in HOST_PHASES
        },
        view_s=view_s,
        kernel_s=_kernel_seconds(device, clock),
    )


def _run() -> RunSpec:
    model = spec_from_config("calibration", TINY)
    return RunSpec(model=model, method=MethodSpec(name="lora", rank=4), bs=1, seq=8, dtype="fp32")


def _counted(work: Workload) -> tuple[Counter[str], Counter[str]]:
    """Return how many operations of each phase launch kernels, and how many are views."""
    counter = _Counter()
    with counter:
        training_step(work, counter.enter)
    return counter.operations, counter.views


class _Counter(TorchDispatchMode):
    """Counts operators by phase."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.operations: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self._phase = ""

    def enter(self, phase: str) -> None:
        """Say that a phase begins."""
        self._phase = phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (self.views if _is_view(func) else self.operations)[self._phase] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos) or "empty" in str(func)


def _timed(work: Workload, deadline: Deadline, clock: Callable[[], float]) -> dict[str, float]:
    """Return the median seconds of the host in each phase."""
    seen: dict[str, list[float]] = {phase: [] for phase in HOST_PHASES}
    for number, _ in deadline.share(range(MOST)):
        marks: dict[str, float] = {}
        training_step(work, lambda phase, marks=marks: marks.__setitem__(phase, clock()))  # type: ignore[misc]
        names = list(marks)
        for name, after in itertools.pairwise(names):
            if name in seen:
                seen[name].append(marks[after] - marks[name])
        if work.device != "cpu":
            torch.cuda.synchronize()
        if number + 1 >= FEWEST and deadline.is_over:
            break
    return {phase: statistics.median(times) for phase, times in seen.items()}


def _view_seconds(device: str, clock: Callable[[], float]) -> float:
    tensor = torch.zeros(4, 4, device=device, requires_grad=True)
    return _each(lambda: tensor.view(16), clock)


def _kernel_seconds(device: str, clock: Callable[[], float]) -> float:
    """Return what each further kernel of one operation takes: of an operation on a list of tensors."""
    many = [torch.zeros(4, device=device) for _ in range(MANY)]
    few, all_s = (_each(lambda n=n: torch._foreach_add_(many[:n], 1.0), clock) for n in (FEW, MANY))  # type: ignore[misc]
    return max(all_s - few, 0.0) / (MANY // FEW - 1)


def _each(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median time of the host for one run."""
    run()
    times = []
    for _ in range(REPEATS):
        began = clock()
        run()
        times.append(clock() - began)
    return statistics.median(times)
