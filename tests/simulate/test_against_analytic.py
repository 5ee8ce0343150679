"""Two engines that share no code on the way agree: closed forms, and the real step on meta tensors.

The closed forms follow the modelling code by hand; the simulation runs it. Where the peak is not inside a kernel, both
say the same bytes.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.analytic import predict
from lorafa_prof.catalog import load_model
from lorafa_prof.ledger import Category
from lorafa_prof.simulate.kernels.workspaces import DeviceTraits
from lorafa_prof.simulate.platforms import Cuda
from lorafa_prof.simulate.record import record
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.units import allocated
from tests.analytic.runs import run_of

A100 = DeviceTraits((8, 0), 108)

FAMILIES = (
    "llama", "mistral-window", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite", "gpt2", "gpt_bigcode",
    "t5",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "autocast": {"amp": True, "dtype": "fp32"},
    "checkpointing": {"checkpointing": "full"},
    "eager, dropout": {"attn": "eager", "dropout": 0.1},
}


def simulated_peak(run: RunSpec) -> int:
    """The most that is alive in the second step, each storage rounded up to 512 bytes; buffers of kernels left out."""
    platform = Cuda(A100, "2.13.0")
    trace = record(run, platform).trace(2, platform)
    sizes = [0 if b.category is Category.WORKSPACES else allocated(b.nbytes) for b in trace.blocks]
    live = top = 0
    for position, event in enumerate(trace.events):
        live += sizes[event] if event >= 0 else -sizes[~event]
        if position >= trace.position("forward"):
            top = max(top, live)
    return top


def closed_form(run: RunSpec) -> int:
    """The analytic engine's peak without cuBLAS workspaces; it has to be one that is in no kernel."""
    prediction = predict(run)
    assert prediction.ledger is not None
    hidden = ("attention backward", "gradient of expanded", "dequantised weight")
    assert not any(item.tensor.startswith(hidden) for item in prediction.ledger.items)
    peak = prediction.memory.peak_allocated_bytes
    assert peak is not None
    return peak - prediction.ledger.total(Category.WORKSPACES)


def cases() -> list[Any]:
    """Every family with one method a time; the whole product is left to the slow tests."""
    made = []
    for i, family in enumerate(FAMILIES):
        for j, method in enumerate(("full", "lora", "lora-fa", "vera")):
            for k, (name, options) in enumerate(OPTIONS.items()):
                marks = () if (i + j + k) % 4 == 0 else pytest.mark.slow
                made.append(pytest.param(family, method, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "options"), cases())
def test_tiny_models(family: str, method: str, options: dict[str, Any]) -> None:
    """With a vocabulary so large that the loss is the peak."""
    run = run_of(family, method, layers=5, changes={"vocab_size": 6000}, optimizer="adamw", **options)
    assert simulated_peak(run) == closed_form(run)


def quantised_cases() -> list[Any]:
    """Layers of all kinds: GPT-2's, which are transposed before they are quantised, with biases and without."""
    made = []
    for i, family in enumerate(("gpt2", "gpt_bigcode", "llama-bias", "qwen3")):
        for j, (method, quant) in enumerate(
            (("qlora", "nf4"), ("qlora-fa", "nf4-dq"), ("lora-fb", "nf4"), ("vera", "nf4-dq"))
        ):
            for k, (name, options) in enumerate({**OPTIONS, "fp16": {"dtype": "fp16"}}.items()):
                quick = (family == "gpt2" and (j + k) % 3 == 0) or (i + j + k) % 5 == 0
                marks = () if quick else pytest.mark.slow
                made.append(pytest.param(family, method, quant, options, id=f"{family}-{method}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("family", "method", "quant", "options"), quantised_cases())
def test_quantised_weights(family: str, method: str, quant: Any, options: dict[str, Any]) -> None:
    """Packed weights, their scales and tables, products in bf16 whatever the dtype, biases that become bf16."""
    changes = {"vocab_size": 6000}
    run = run_of(family, method, quant=quant, layers=5, changes=changes, optimizer="adamw", **options)
    assert simulated_peak(run) == closed_form(run)


@pytest.mark.parametrize("family", ["mistral-window", "gemma3_text-window"])
@pytest.mark.parametrize("options", [{}, {"checkpointing": "full"}], ids=["plain", "checkpointing"])
def test_windows_of_flash_attention(family: str, options: dict[str, Any]) -> None:
    """A window that is shorter than the sequence costs flash attention nothing: no mask, no other kernel."""
    run = run_of(family, "lora", attn="flash", layers=5, changes={"vocab_size": 6000}, **options)
    assert simulated_peak(run) == closed_form(run)


def test_autocast_of_repeated_heads() -> None:
    """With a mask, and one key/value head for all: autocast copies the head once a query head, though it is a view."""
    changes = {"vocab_size": 6000, "num_key_value_heads": 1}
    run = run_of("gemma3_text-window", "lora", layers=5, changes=changes, amp=True, dtype="fp32")
    assert simulated_peak(run) == closed_form(run)


@pytest.mark.parametrize(
    ("model", "method", "options"),
    [
        ("llama2-7b", "lora-fa", {"bs": 8, "seq": 1024}),
        ("gpt2", "lora", {"bs": 4, "seq": 512, "quant": "nf4-dq"}),
        ("llama3-8b", "qlora", {"bs": 2, "seq": 2048, "checkpointing": "full"}),
        pytest.param("mistral-7b", "lora", {"bs": 4, "seq": 4096, "checkpointing": "full"}, marks=pytest.mark.slow),
        pytest.param("qwen3-8b", "vera", {"bs": 3, "seq": 512}, marks=pytest.mark.slow),
        pytest.param(
            "llama3.2-1b", "full", {"bs": 4, "seq": 1024, "dtype": "fp32", "amp": True}, marks=pytest.mark.slow
        ),
        pytest.param("llama3-70b", "lora", {"bs": 1, "seq": 1024}, marks=pytest.mark.slow),
    ],
)
def test_models_of_full_size(model: str, method: str, options: dict[str, Any]) -> None:
    """Real configurations: billions of parameters, of which no byte is allocated."""
    run = RunSpec(model=load_model(model), method=MethodSpec(name=method), **options)
    assert simulated_peak(run) == closed_form(run)
