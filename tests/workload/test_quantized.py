"""Quantised models against those that transformers itself loads: the same layers, tensor by tensor, bit by bit."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.models import AUTO_CLASSES, base_model
from lorafa_prof.workload.quantized import quantization_state, quantize
from lorafa_prof.workload.step import build_model
from lorafa_prof.workload.versions import release
from tests.analytic.runs import run_of

DTYPE = "dtype" if release("transformers") >= (4, 56) else "torch_dtype"
QUANTS = ("nf4", "nf4-dq", "int8")


def loaded(run: RunSpec, folder: Path, **options: Any) -> Any:
    """What `from_pretrained` makes of the weights in `folder`."""
    return AUTO_CLASSES[run.model.task].from_pretrained(folder, **{DTYPE: torch.bfloat16}, **options)


def by_transformers(run: RunSpec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same, quantised as it is loaded."""
    if run.resolved_quant == "int8":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=run.resolved_quant == "nf4-dq",
        )  # fmt: skip
    # before 4.49 it looks for backends by a set that later bitsandbytes do not let it change
    monkeypatch.setattr("transformers.integrations.validate_bnb_backend_availability", lambda **_: True)
    return loaded(run, folder, quantization_config=config, device_map={"": "cpu"})


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and what quantisation keeps beside them, by name."""
    beside = (entry for path, module in model.named_modules() for entry in quantization_state(path, module))
    return {**dict(model.named_parameters()), **dict(beside)}


def layout(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    """Shape, strides and dtype of each of the tensors, and the shape that packed ones stand for."""
    return {
        name: (tensor.shape, tensor.stride(), tensor.dtype, getattr(getattr(tensor, "quant_state", None), "shape", 0))
        for name, tensor in tensors(model).items()
    }


@pytest.fixture(scope="module", params=["gpt2", "gpt_bigcode", "llama-bias", "t5"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and a folder with random weights of its tiny model."""
    folder = tmp_path_factory.mktemp(request.param)
    model: Any = base_model(run_of(request.param, "lora"), "cpu")
    model.save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("quant", QUANTS)
def test_the_tensors_are_those_that_transformers_loads(
    saved: tuple[str, Path], quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's transposed weights among them: the same layers are replaced, and hold the same bits."""
    family, folder = saved
    run = run_of(family, "lora", quant=quant, targets=("qv",))
    theirs = by_transformers(run, folder, monkeypatch)
    ours = quantize(loaded(run, folder), run)
    assert layout(ours) == layout(theirs)
    left, right = tensors(ours), tensors(theirs)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    kinds = {path: type(module) for path, module in theirs.named_modules()}
    assert {path: type(module) for path, module in ours.named_modules()} == kinds


@pytest.mark.parametrize("quant", QUANTS)
def test_meta_has_their_shapes(saved: tuple[str, Path], quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the simulation starts from has the shapes, strides and dtypes of what transformers loads."""
    family, folder = saved
    run = run_of(family, "lora", quant=quant, targets=("qv",))
    theirs = layout(by_transformers(run, folder, monkeypatch))
    assert layout(quantize(base_model(run, "meta"), run)) == theirs


@pytest.mark.parametrize("quant", QUANTS)
def test_adapters_over_gpt2(quant: str) -> None:
    """Over a quantised layer PEFT's adapter is that of a linear layer: A is (r, in), B (out, r), nothing turned."""
    if quant == "int8" and release("peft") < (0, 14):
        pytest.skip("PEFT before 0.14 adapts int8 weights of earlier bitsandbytes only")
    model = build_model(run_of("gpt2", "lora", quant=quant), "meta")
    layers = {path: module for path, module in model.named_modules() if path.endswith((".c_attn", ".c_fc", ".c_proj"))}
    assert len(layers) == 2 * 4
    for layer in layers.values():
        adapted: Any = layer
        base = adapted.get_base_layer()
        assert type(base).__module__.startswith("bitsandbytes")
        assert not adapted.fan_in_fan_out
        assert adapted.lora_A["default"].weight.shape == (4, base.in_features)
        assert adapted.lora_B["default"].weight.shape == (base.out_features, 4)


def test_nothing_to_quantise() -> None:
    """A model whose only linear layer is its head is refused by name."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_head=1, n_layer=0, vocab_size=9))
    with pytest.raises(UnsupportedError, match="gpt2 has no linear layers"):
        quantize(model, run_of("gpt2", "qlora"))


@pytest.mark.parametrize(
    ("method", "quant", "said"),
    [
        ("lora", "int8", r"PEFT 0\.13.* bitsandbytes up to 0\.44.* PEFT 0\.14 or later"),
        ("vera", "nf4", r"0\.14 has it"),
    ],
)
def test_releases_that_do_not_go_together(method: str, quant: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT 0.13 asks int8 layers for what bitsandbytes 0.45 dropped, and VeRA takes packed weights for plain ones."""
    pytest.importorskip("bitsandbytes", minversion="0.45")
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.13.2" if name == "peft" else known(name))
    with pytest.raises(UnsupportedError, match=said):
        build_model(run_of("llama", method, quant=quant), "meta")
