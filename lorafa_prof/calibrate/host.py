"""How long the host takes to issue operations: real steps of a model so small that nothing else takes time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from lorafa_prof.calibrate.kernels import Deadline
from lorafa_prof.catalog import spec_from_config
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.speed.profile import HOST_PHASES, HostTimes
from lorafa_prof.speed.work import OpWork
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


def host_times(
    device: str,
    works: Sequence[OpWork],
    busy: Callable[[OpWork], float],
    deadline: Deadline,
    clock: Callable[[], float] = time.perf_counter,
) -> HostTimes:
    """Return the seconds an operation, by phase, of the step of `tiny_run`; Python, modules and autograd included.

    Args:
        device: what torch calls it.
        works: the operations of that step.
        busy: seconds in which the host itself executes an operation.
        deadline: how long it may take.
        clock: seconds, of which differences count.
    """
    work = Workload.build(tiny_run(), device)
    for _ in range(WARMUP):
        training_step(work)
    times = _timed(work, deadline, clock)
    view_s, kernel_s = _view_seconds(device, clock), _kernel_seconds(device, clock)
    op_s = {}
    for phase in HOST_PHASES:
        mine = [each for each in works if _PART_OF.get(each.phase, each.phase) == phase]
        launching = [each for each in mine if each.kernels]
        rest = times[phase] - view_s * (len(mine) - len(launching)) - sum(map(busy, launching))
        rest -= kernel_s * sum(each.kernels - 1 for each in launching)
        op_s[phase] = max(rest, 0.0) / max(len(launching), 1)
    return HostTimes(op_s=op_s, view_s=view_s, kernel_s=kernel_s)


#: Phases of operations within those that are timed.
_PART_OF = {"loss": "forward", "recompute": "backward"}


def tiny_run() -> RunSpec:
    """Return the run whose steps are timed."""
    model = spec_from_config("calibration", TINY)
    return RunSpec(model=model, method=MethodSpec(name="lora", rank=4), bs=1, seq=8, dtype="fp32")


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
    """Return what each further kernel of one operation takes: of an operation on a list of tensors.

    On the CPU each tensor is one, on a card so many as go into one launch.
    """
    tensors = [torch.zeros(4, device=device) for _ in range(MANY)]
    few, many = (_each(lambda n=n: torch._foreach_add_(tensors[:n], 1.0), clock) for n in (FEW, MANY))  # type: ignore[misc]
    return max(many - few, 0.0) / (MANY - FEW if device == "cpu" else MANY // FEW - 1)


def _each(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median time of the host for one run."""
    run()
    times = []
    for _ in range(REPEATS):
        began = clock()
        run()
        times.append(clock() - began)
    return statistics.median(times)
