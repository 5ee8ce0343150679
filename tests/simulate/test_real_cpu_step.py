"""The simulated CPU against a real step on the CPU, as PyTorch's profiler hears it from the allocator itself.

The profiler's reports know nothing of this project: of dispatch modes, meta tensors or tables of what kernels hide. Its
events and the simulated ones must be the same, in the same order, to the byte.

Left out on both sides: numbers that Python arithmetic wraps into tensors of up to 16 bytes, which a dispatch mode does
not see; nor does it see the random state that checkpointing keeps (`by_operators` leaves it out). PEFT's LoRA-FA
optimizer is held to the bytes at the end of each phase and to the peak: what `linalg_pinv` makes inside is one sum in
the simulation, and a matrix that it moves from the host to the device is on the device already when that is the CPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import peft
import pytest

from lorafa_prof.simulate.cpu_platform import Cpu
from lorafa_prof.simulate.on_cpu import build_for_cpu
from lorafa_prof.simulate.record import record
from lorafa_prof.simulate.trace import Trace
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.versions import release
from tests.analytic.runs import run_of
from tests.support.profiled import ProfiledStep, kernels_of_known_size, profile_step

THREADS = 2
#: What Python arithmetic makes tensors of: an int64 or a float64, in RoBERTa of older releases two of them.
NUMBER = 16
#: `repeat` makes vectors of sizes inside (in T5's masks of older releases); an axis has 8 bytes in each.
REPEAT, SIZES = "aten::repeat", 64
FAMILIES = ("llama", "mistral-window", "qwen3", "gemma2", "phi3", "gpt2", "gpt_bigcode", "roberta", "t5")
METHODS = (
    "full",
    "lora",
    "lora-fa",
    "lora-fa-peft",
    "lora-fb",
    "vera",
    "lora-plus",
    "dora",
    "adalora",
    "lora-pro",
    "lora-ga",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fp32": {"dtype": "fp32"},
    "checkpointing": {"checkpointing": "full"},
    "eager": {"attn": "eager"},
    "one sequence": {"bs": 1},
    "the optimizer adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd"},
    "dropout, bf16 adapters": {"dropout": 0.1, "adapter_dtype": "bf16"},
    "moments of weights": {"optimizer": "lora-pro-full"},
}
#: What the method does not have.
REFUSED = (
    ("full", "dropout, bf16 adapters"), ("lora-plus", "sgd"), ("lora-pro", "sgd"), ("lora-pro", "the optimizer adamw"),
    *((method, "moments of weights") for method in METHODS if method != "lora-pro"),
)  # fmt: skip


def cases() -> list[Any]:
    """Every family with the plain options, one with all; the rest of the product is left to the slow tests."""
    made = []
    for i, family in enumerate(FAMILIES):
        for j, method in enumerate(METHODS):
            for name, options in OPTIONS.items():
                if (method, name) in REFUSED or (family, method) == ("roberta", "lora-ga"):
                    continue
                quick = (name == "plain" and (i + j) % 2 == 0) or (family == "llama" and method in ("full", "lora-fa"))
                quick |= (
                    method in ("lora-pro", "lora-ga")
                    and family in ("llama", "gpt2")
                    and name in ("plain", "moments of weights")
                )
                marks = () if quick else pytest.mark.slow
                made.append(pytest.param(family, method, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


def simulated(run: RunSpec) -> tuple[Trace, int]:
    """The trace of two steps on the CPU, and the event at which the second begins."""
    platform = Cpu(THREADS)
    trace = record(run, platform, build_for_cpu).trace(2, platform)
    return trace, trace.position("forward")


def changes(trace: Trace, first: int) -> list[int]:
    """Bytes that come (positive) and go with each event from `first` on."""
    blocks = ((event, trace.blocks[event if event >= 0 else ~event]) for event in trace.events[first:])
    return [block.nbytes if event >= 0 else -block.nbytes for event, block in blocks if block.nbytes > NUMBER]


def reports(step: ProfiledStep) -> list[int]:
    """The same of the allocator's reports."""
    return [event.delta for event in step.events if abs(event.delta) > (SIZES if REPEAT in event.stack else NUMBER)]


def in_order(deltas: list[int]) -> list[int]:
    """The events, those of the last cascade of deaths sorted.

    When the loss goes, what is left of the graph goes with it; its order depends on which nodes Python has looked at.
    """
    last = next((i for i, delta in enumerate(reversed(deltas)) if delta > 0), len(deltas))
    return deltas[: len(deltas) - last] + sorted(deltas[len(deltas) - last :])


def live_at(trace: Trace, first: int) -> dict[str, int]:
    """Bytes alive at the end of each phase of the last step beyond those at its start, and the most of all moments."""
    curve = [0]
    for event in trace.events[first:]:
        block = trace.blocks[event if event >= 0 else ~event]
        curve.append(curve[-1] + (block.nbytes if event >= 0 else -block.nbytes))
    begins = {phase: curve[position - first] for position, phase in trace.marks if position >= first}
    return {
        "after_forward": begins["backward"], "after_backward": begins["optimizer"],
        "after_optimizer": begins["zero_grad"], "end": curve[-1], "peak": max(curve),
    }  # fmt: skip


@pytest.mark.parametrize(("family", "method", "options"), cases())
def test_every_event_is_the_allocator_s(family: str, method: str, options: dict[str, Any]) -> None:
    """The sequence of events, the bytes at the end of each phase and the peak are those of the real step."""
    if method == "lora-ga" and not hasattr(peft, "preprocess_loraga"):
        pytest.skip("the installed PEFT has no LoRA-GA")
    if (family, method) == ("roberta", "adalora") and release("peft") < (0, 14):
        pytest.skip("earlier PEFT adapts the head that it saves beside the adapters, and misses gradients of it there")
    attention = {"attn": "eager"} if family == "t5" else {}  # see test_position_bias
    run = run_of(family, method, **{**attention, **options})
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        trace, first = simulated(run)
    real = {name: getattr(step, name) for name in ("after_forward", "after_backward", "after_optimizer", "end")}
    assert live_at(trace, first) == {**real, "peak": step.peak.live}
    if run.resolved_optimizer != "lorafa-peft" and not sums_through_fp32(run):
        assert in_order(changes(trace, first)) == in_order(reports(step))


QUANTISED = (
    ("gpt2", "qlora", "nf4", {}), ("gpt2", "qlora-fa", "nf4-dq", {"optimizer": "adamw"}),
    ("llama", "vera", "nf4", {"checkpointing": "full"}), ("gpt2", "lora-fb", "nf4-dq", {"dtype": "fp32"}),
    ("gpt_bigcode", "qlora", "nf4", {}), ("llama-bias", "qlora", "nf4-dq", {"dtype": "fp16"}),
    ("qwen3", "qlora", "nf4", {"dropout": 0.1, "bs": 1}), ("gpt2", "qlora", "nf4-dq", {"checkpointing": "full"}),
    ("gpt2", "adalora", "nf4", {}),
)  # fmt: skip


@pytest.mark.parametrize(("family", "method", "quant", "options"), QUANTISED)
def test_quantised_weights(family: str, method: str, quant: Any, options: dict[str, Any]) -> None:
    """4-bit layers, GPT-2's transposed ones among them, as bitsandbytes runs them on the CPU.

    Its int8 layers run other code on the CPU than on CUDA, which meta tensors do not take.
    """
    if method == "vera" and release("peft") < (0, 19):
        pytest.skip("the result of earlier PEFT's VeRA over 4-bit weights is fp32, which the next bf16 layer refuses")
    run = run_of(family, method, quant=quant, **options)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        trace, first = simulated(run)
    ends = live_at(trace, first)
    del ends["peak"]  # follows from the events, but for the numbers that are left out of them
    assert ends == {name: getattr(step, name) for name in ends}
    assert by_cascades(changes(trace, first)) == by_cascades(reports(step))


def by_cascades(deltas: list[int]) -> list[int]:
    """The events, those of every cascade of deaths sorted: Python frees a kernel's local names in its own order."""
    runs = (list(run) for _, run in itertools.groupby(deltas, key=lambda delta: delta > 0))
    return [delta for run in runs for delta in (run if run[0] > 0 else sorted(run))]


def sums_through_fp32(run: RunSpec) -> bool:
    """Whether a step sums a permuted 16-bit tensor over two dimensions that cannot be made one.

    The CPU does that in fp32 copies (ATen/native/ReduceOps.cpp, `should_use_acc_buffer`), which have no formula here:
    the gradients of VeRA's vectors and of DoRA's 16-bit magnitudes behind T5's dropout. The ends of phases and the peak
    are compared all the same.
    """
    sixteen_bit = run.method.name == "vera" or (run.method.name == "dora" and run.resolved_adapter_dtype != "fp32")
    return run.model.architecture == "t5" and sixteen_bit and run.method.dropout > 0
