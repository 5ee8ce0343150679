"""What optimizers keep and what their steps make: the closed forms against the real optimizers' steps on meta."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafa_prof.analytic import predict
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.ledger import Category
from lorafa_prof.results.figures import MANAGED_ITSELF
from lorafa_prof.simulate.engine import predict as simulate
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.workload import Workload, training_step
from tests.analytic.runs import run_of
from tests.simulate.test_against_analytic import closed_form, simulated
from tests.simulate.test_real_cpu_step import THREADS, by_cascades, changes, live_at, reports, simulated as on_cpu
from tests.support.profiled import kernels_of_known_size, profile_step

#: A batch so small that the optimizer's step is the peak.
SMALL: dict[str, Any] = {"bs": 1, "seq": 2}
#: Wide enough for 8-bit states, and for paged ones in the embedding and the MLP.
WIDE = {"hidden_size": 384, "intermediate_size": 512, "vocab_size": 600}


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"])
@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("llama", "full", {}),
        ("llama", "full", {"dtype": "fp32", "attn": "eager"}),
        ("gpt2", "full", {"layers": 6}),
        ("llama-bias", "lora", {"rank": 32, "attn": "eager"}),
        ("gemma2", "vera", {"adapter_dtype": "bf16"}),
        ("mixtral", "full", {}),
        ("phi3", "lora-fa", {"rank": 48, "layers": 5}),  # as wide as its narrowest layer
        ("phi3", "lora-fa-peft", {"rank": 512, "layers": 5}),
    ],
)
def test_states_and_temporaries(family: str, method: str, options: dict[str, Any], optimizer: str) -> None:
    """Both engines say the same bytes of every part, in the allocator and in managed memory."""
    wide = WIDE if family == "llama" else {}
    # where the step makes nothing for a moment, the loss of many words is the peak
    sizes: dict[str, Any] = SMALL if optimizer == "adafactor" else {"changes": wide | {"vocab_size": 6000}}
    run = run_of(family, method, **{"changes": wide, "optimizer": optimizer, **sizes, **options})
    assert simulated(run)[0] == closed_form(run)
    assert simulate(run).memory.managed_bytes == predict(run).memory.managed_bytes


def test_paged_states_are_outside_the_allocator() -> None:
    """Of a parameter of 100,000 elements the two moments, a byte each; its scales and smaller states stay inside."""
    run = run_of("llama", "full", changes=WIDE, optimizer="paged-adamw-8bit", **SMALL)
    predictions = simulate(run), simulate(run.replace(optimizer="adamw-8bit"))
    (paged, plain), said = (p.memory for p in predictions), [MANAGED_ITSELF in p.unmodelled for p in predictions]
    assert said == [True, False]  # no card has been asked
    assert MANAGED_ITSELF in predict(run).unmodelled
    work = Workload.build(run, "meta")
    large = [p.numel() for p in work.model.parameters() if p.numel() >= 100_000]
    assert large
    assert paged.managed_bytes == 2 * sum(large)
    assert plain.managed_bytes is None
    inside, outside = plain.optimizer_bytes or 0, paged.optimizer_bytes or 0
    assert inside - outside == 2 * sum(-(-n // 512) * 512 for n in large)


def test_paged_states_of_32_bits() -> None:
    """Of a large parameter two moments of four bytes an element, though weights are in bf16; small ones stay inside."""
    run = run_of("llama", "full", changes=WIDE, optimizer="paged-adamw", **SMALL)
    memory = simulate(run).memory
    numbers = [p.numel() for p in Workload.build(run, "meta").model.parameters()]
    assert memory.managed_bytes == 2 * 4 * sum(n for n in numbers if n >= 100_000)
    assert memory.optimizer_bytes == 2 * sum(-(-4 * n // 512) * 512 for n in numbers if n < 100_000)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused", "adamw-8bit", "paged-adamw", "paged-adamw-8bit", "sgd"])
def test_lora_plus(optimizer: str) -> None:
    """A and B in groups of their own, by any optimizer that PEFT makes them for: the same bytes by both engines."""
    run = run_of("llama", "lora-plus", optimizer=optimizer, rank=96, bs=1, seq=2)
    assert simulated(run)[0] == closed_form(run)
    with pytest.raises(UnsupportedError, match=r"LoRA\+ is not modelled with Adafactor"):
        simulate(run.replace(optimizer="adafactor"))


@pytest.mark.parametrize("optimizer", ["paged-adamw", "paged-adamw-8bit"])
def test_paged_states_need_cuda(optimizer: Any) -> None:
    """bitsandbytes would keep them on the host without a word's difference in the result; here it is refused."""
    run = run_of("llama", "lora", optimizer=optimizer)
    for refused in (lambda: Workload.build(run, "cpu"), lambda: predict_on_cpu(run, THREADS)):
        with pytest.raises(UnsupportedError, match="managed memory"):
            refused()


@pytest.mark.parametrize(("method", "options"), [("full", {}), ("full", {"dtype": "fp32"}), ("lora", {})])
def test_adafactor_s_real_step(method: str, options: dict[str, Any]) -> None:
    """Every event of the allocator in a real step on the CPU, the states' replaced scalars left out."""
    run = run_of("llama", method, optimizer="adafactor", **options)
    with kernels_of_known_size(THREADS):
        step = profile_step(run).by_operators
        trace, first = on_cpu(run)
    ends = live_at(trace, first)
    assert ends == {name: getattr(step, name) for name in list(ends)[:-1]} | {"peak": step.peak.live}
    assert by_cascades(changes(trace, first)) == by_cascades(reports(step))


def test_adafactor_s_states() -> None:
    """Of a matrix a mean for each row and one for each column, in fp32, of the real optimizer after its step."""
    work = Workload.build(run_of("llama", "full", optimizer="adafactor"), "cpu")
    training_step(work)
    states: dict[Any, dict[str, Any]] = work.optimizer.state
    held = sum(v.nbytes for state in states.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert held == sum(4 * (sum(p.shape) if p.dim() == 2 else p.numel()) + 4 for p in states)
    ledger = predict(work.run).ledger
    assert ledger is not None
    said = [i for i in ledger.items if i.category is Category.OPTIMIZER]
    assert len({i.tensor for i in said}) == 4
