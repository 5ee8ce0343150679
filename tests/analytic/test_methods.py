"""One linear layer, method by method, against figures worked out by hand: a registered method without a row fails."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lorafa_prof.analytic import ops
from lorafa_prof.analytic.builder import ADAPTERS, Builder
from lorafa_prof.analytic.methods import adapter_maker, modelled_methods, register
from lorafa_prof.analytic.sizes import size_of
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.catalog import load_model
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import METHODS, MethodSpec, RunSpec

#: Widths m -> k and rank r, all different so that no formula is right by coincidence.
M, K, R = 96, 160, 8


@dataclass(frozen=True)
class Golden:
    """What a method adds to one frozen linear layer (m -> k), and keeps of one token."""

    trained: int
    """Trained elements."""
    frozen: int
    """Frozen adapter elements of the layer (shared ones not counted)."""
    saved_bf16: int
    """Saved bytes a token with bf16 adapters over a bf16 base."""
    saved_fp32: int
    """The same with fp32 adapters: PEFT casts x first, and the copy is what is kept."""
    once_bf16: int = 0
    """Saved bytes that do not depend on the tokens, with bf16 adapters; with fp32 adapters twice as many."""


#: Full: 2 m. LoRA: A's input and B's, 2 m + 2 r (4 m + 4 r in fp32). PEFT's LoRA-FA: B's input alone, 2 r (4 r). Ours
#: computes in the dtype of x, whatever that of the adapters: 2 r with both. LoRA-FB: A's input alone, 2 m. VeRA: what
#: lambda_d and lambda_b multiply, 2 r + 2 k. DoRA: LoRA's, and what its scale multiplies: W x in the base's dtype and
#: B A x, 2 k each (2 k + 4 k); once for all tokens the norms, the scale and the scale less one, k each. AdaLoRA:
#: LoRA's, what its divisor divides, k wide, and once for all tokens E * A and the divisor. The q-methods keep what
#: theirs keeps unquantised.
LORA = Golden(trained=8 * (96 + 160), frozen=0, saved_bf16=2 * 96 + 2 * 8, saved_fp32=4 * 96 + 4 * 8)
LORA_FA = Golden(trained=8 * 160, frozen=8 * 96, saved_bf16=2 * 8, saved_fp32=2 * 8)
GOLDEN = {
    "full": Golden(trained=96 * 160, frozen=0, saved_bf16=2 * 96, saved_fp32=2 * 96),
    "lora": LORA,
    "lora-qv": LORA,
    "pissa": LORA,
    "lora-plus": LORA,
    "lora-pro": LORA,
    "lora-ga": LORA,
    "dora": Golden(
        trained=8 * (96 + 160) + 160,
        frozen=0,
        saved_bf16=2 * (96 + 8) + 2 * (160 + 160),
        saved_fp32=4 * (96 + 8) + (2 + 4) * 160,
        once_bf16=3 * 2 * 160,
    ),
    "qlora": LORA,
    "lora-fa": LORA_FA,
    "lora-fa-peft": Golden(trained=8 * 160, frozen=8 * 96, saved_bf16=2 * 8, saved_fp32=4 * 8),
    "qlora-fa": LORA_FA,
    "lora-fb": Golden(trained=8 * 96, frozen=8 * 160, saved_bf16=2 * 96, saved_fp32=4 * 96),
    "adalora": Golden(
        trained=8 * (96 + 160) + 8 + 1,
        frozen=0,
        saved_bf16=2 * (96 + 8 + 160),
        saved_fp32=4 * (96 + 8 + 160),
        once_bf16=2 * (8 * 96 + 1),
    ),
    "vera": Golden(trained=160 + 8, frozen=0, saved_bf16=2 * (8 + 160), saved_fp32=4 * (8 + 160)),
}


def test_every_registered_method_has_its_row() -> None:
    """And every row is of a registered method that the command line knows."""
    assert sorted(modelled_methods()) == sorted(GOLDEN)
    assert set(GOLDEN) <= set(METHODS)


@pytest.mark.parametrize("adapter_dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("method", GOLDEN)
def test_one_layer(method: str, adapter_dtype: str) -> None:
    """Trained and frozen elements, and the bytes of a token that autograd keeps; the input needs a gradient."""
    golden = GOLDEN[method]
    run = RunSpec(
        model=load_model("llama2-7b"),
        method=MethodSpec(name=method, rank=R),
        adapter_dtype=adapter_dtype,  # type: ignore[arg-type]
    )
    tape = Tape()
    builder = Builder(run, tape, adapter_maker(method))
    layer = builder.linear("q_proj", M, K, role="q")
    builder.attach_adapters()
    x = tape.new("input", ("b", "s", M), "bf16")
    x.requires_grad = True
    tape.record("source", [], x, [], lambda _: [])
    layer(ops.shift(x))

    adapters = [h.parameter for h in builder.held if h.parameter.kind == ADAPTERS]
    trained = sum(h.parameter.numel for h in builder.held if h.parameter.requires_grad)
    assert trained == golden.trained
    assert sum(p.numel for p in adapters if not p.requires_grad) == golden.frozen
    sizes = [size_of(item.shape, item.dtype) for item in tape.items if item.saved]
    assert {symbols for _, symbols in sizes} == ({"bs", ""} if golden.once_bf16 else {"bs"})
    expected = golden.saved_bf16 if adapter_dtype == "bf16" else golden.saved_fp32
    assert sum(coefficient for coefficient, symbols in sizes if symbols) == expected
    once = golden.once_bf16 * (1 if adapter_dtype == "bf16" else 2)
    assert sum(coefficient for coefficient, symbols in sizes if not symbols) == once


def test_a_name_is_registered_once() -> None:
    """Two formulas under one name would be one of them in silence."""
    with pytest.raises(ValueError, match="lora is registered already"):
        register("lora")(lambda builder, layer: lambda x, result: result)


def test_a_method_that_is_not_modelled_is_refused_by_name() -> None:
    """With the names of those that are."""
    with pytest.raises(UnsupportedError, match=r"does not model the method lora-xs \(it does: full, lora"):
        adapter_maker("lora-xs")
