"""What the adapter forward computes, and what it keeps for the backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lorafa_prof import lorafa
from lorafa_prof.lorafa.forward import Options, add_adapter
from tests.lorafa.models import RANK, WIDTH, adapted, inputs, prepared

M, K, N = 24, 40, 12


def tensors(dtype: torch.dtype, *, trains: str = "B", adapter: torch.dtype | None = None) -> list[torch.Tensor]:
    """result (2, 6, k), x (2, 6, m), a (r, m), b (k, r), of which one of the last does not train."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 6, K), (2, 6, M), (RANK, M), (K, RANK)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    made[2:] = [each.to(adapter or dtype) for each in made[2:]]
    for number, each in enumerate(made):
        each.requires_grad_(number < 2 or number == (3 if trains == "B" else 2))
    return made


def plain(tensors: list[torch.Tensor], scaling: float, mask: torch.Tensor | None = None, rate: float = 0.0) -> Any:
    """The same in autograd's own operators."""
    result, x, a, b = tensors
    x = x if mask is None else x * mask.view(x.shape) / (1 - rate)
    return result + scaling * (x @ a.T @ b.T)


@contextmanager
def keeping() -> Iterator[list[torch.Tensor]]:
    """The tensors that autograd keeps for a backward, parameters left out, each storage once."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not isinstance(whole, torch.nn.Parameter):
            kept.setdefault(whole.untyped_storage().data_ptr(), whole)
        return tensor

    found: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    found.extend(kept.values())


class TestGradients:
    """Against autograd in float64."""

    @pytest.mark.parametrize("trains", ["A", "B"])
    def test_gradcheck(self, trains: str) -> None:
        """Numerical derivatives of every input that has one, those of the base layer's result among them."""
        options = Options(1.7, torch.float64, 0.25, 11)
        made = tensors(torch.float64, trains=trains)
        assert torch.autograd.gradcheck(lambda *given: add_adapter(*given, options), made)

    @pytest.mark.parametrize("trains", ["A", "B"])
    def test_autograds_own(self, trains: str) -> None:
        """The value and all gradients, to 1e-12."""
        ours, theirs = tensors(torch.float64, trains=trains), tensors(torch.float64, trains=trains)
        out, expected = add_adapter(*ours, Options(1.7, torch.float64)), plain(theirs, 1.7)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        for value in (out, expected):
            value.sin().sum().backward()
        for one, other in zip(ours, theirs, strict=True):
            assert (one.grad is None) == (other.grad is None)
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("trains", ["A", "B"])
    @pytest.mark.parametrize("adapter", [torch.bfloat16, torch.float32])
    def test_bf16_to_its_rounding(self, trains: str, adapter: torch.dtype) -> None:
        """Products in bf16 with gradients in the parameters' dtype, each within 2 % of the norm of float64's."""
        ours = tensors(torch.bfloat16, trains=trains, adapter=adapter)
        exact = [each.detach().double().requires_grad_(each.requires_grad) for each in ours]
        add_adapter(*ours, Options(1.7, torch.bfloat16)).sum().backward()
        plain(exact, 1.7).sum().backward()
        for one, other in zip(ours, exact, strict=True):
            if other.grad is not None:
                assert one.grad is not None
                assert one.grad.dtype == one.dtype
                assert (one.grad.double() - other.grad).norm() < 0.02 * other.grad.norm()

    @pytest.mark.parametrize("seed", [None, 17])
    def test_the_backward_drops_what_the_forward_dropped(self, seed: int | None) -> None:
        """The mask is read off the result, with A and B of ones; the gradient of x is zero where it is."""
        rate = 0.4
        x = torch.ones(50, M, dtype=torch.float64, requires_grad=True)
        zeros, b = torch.zeros(50, M, dtype=torch.float64), torch.eye(M, dtype=torch.float64, requires_grad=True)
        out = add_adapter(zeros, x, torch.eye(M, dtype=torch.float64), b, Options(2.0, torch.float64, rate, seed))
        values = sorted(set(out.flatten().tolist()))
        assert values == pytest.approx([0.0, 2.0 / (1 - rate)])
        assert 0.5 < (out != 0).double().mean() < 0.7
        out.sum().backward()
        torch.testing.assert_close(x.grad, out)
        torch.testing.assert_close(b.grad, (out.detach().sum(0)[None, :]).expand(M, M))

    def test_dropout_is_drawn_anew_and_can_be_repeated(self) -> None:
        """Two passes differ; the same seed of torch gives the same."""
        model = prepared(lora_dropout=0.5).train()
        outs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outs += [model(inputs())]
        assert torch.equal(outs[0], outs[1])
        assert not torch.equal(outs[0], outs[2])
        assert torch.equal(model.eval()(inputs()), model(inputs()))


class TestPefts:
    """The same layer without `prepare`."""

    @pytest.mark.parametrize("trains", ["A", "B"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_the_same_result_and_gradients(self, dtype: torch.dtype, trains: str) -> None:
        """In one dtype, to its rounding."""
        ours, theirs = prepared(dtype, trains=trains), adapted(dtype)
        x, y = (inputs(dtype).requires_grad_() for _ in range(2))
        out, expected = ours(x), theirs(y)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        theirs_by_name = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, theirs_by_name[name].grad)

    @pytest.mark.parametrize("products", ["input", "adapter"])
    def test_fp32_adapters_over_a_bf16_base(self, products: Any) -> None:
        """With the adapter's dtype PEFT's result, rounded to bf16 once; with the input's to the rounding of bf16."""
        ours, theirs = (adapted(torch.bfloat16, adapter_dtype=torch.float32) for _ in range(2))
        lorafa.prepare(ours, products=products)
        x = inputs(torch.bfloat16)
        out, expected = ours.base_model.model.up(x), theirs.base_model.model.up(x)
        assert out.dtype == expected.dtype == torch.bfloat16
        assert (out - expected).double().norm() < 2**-7 * expected.double().norm()
        if products == "adapter":
            torch.testing.assert_close(out, expected, rtol=2**-7, atol=1e-6)
            assert (out != expected).double().mean() < 0.02  # where fp32's own rounding turns a tie

    def test_gpt2s_layer(self) -> None:
        """Conv1D, whose weight is transposed."""
        from transformers.pytorch_utils import Conv1D

        torch.manual_seed(0)
        base = torch.nn.Sequential(Conv1D(K, M))
        config = peft.LoraConfig(r=RANK, target_modules=["0"], fan_in_fan_out=True, init_lora_weights=False)
        model = peft.get_peft_model(base, config)
        expected = model(inputs())
        torch.testing.assert_close(lorafa.prepare(model)(inputs()), expected)

    def test_several_adapters_at_once(self) -> None:
        """Two prepared ones are added up as PEFT adds them; one that is not prepared works as PEFT's."""
        torch.manual_seed(0)
        config = peft.LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=False)
        model: Any = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(M, K)), config)
        model.add_adapter("second", config)
        model.base_model.set_adapter(["default", "second"])
        expected = model(inputs())
        lorafa.prepare(model, adapters=["default"])
        torch.testing.assert_close(model(inputs()), expected)
        lorafa.prepare(model, adapters=["second"])
        torch.testing.assert_close(model(inputs()), expected)


class TestWhatIsKept:
    """Bytes of the tensors that autograd keeps."""

    def kept(self, model: Any, x: torch.Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
        layer = model.base_model.model.up
        layer.base_layer.requires_grad_(False)
        with keeping() as kept:
            layer(x)
        return [(tuple(each.shape), each.dtype) for each in kept if each.untyped_storage().data_ptr() != x.data_ptr()]

    @pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_projection_alone(self, dtype: torch.dtype, adapter: torch.dtype) -> None:
        """N r elements of the input's dtype, 2 N r or 4 N r bytes, whatever the adapter's dtype; nothing else."""
        model = lorafa.prepare(adapted(dtype, adapter_dtype=adapter))
        x = inputs(dtype).requires_grad_()
        assert self.kept(model, x) == [((N, RANK), dtype)]

    def test_in_the_adapters_dtype(self) -> None:
        """4 N r bytes."""
        model = lorafa.prepare(adapted(torch.bfloat16, adapter_dtype=torch.float32), products="adapter")
        assert self.kept(model, inputs(torch.bfloat16).requires_grad_()) == [((N, RANK), torch.float32)]

    def test_under_autocast(self) -> None:
        """2 N r bytes over an fp32 model; autocast's own cast of the base weight is another matter."""
        model = prepared()
        layer = model.base_model.model.up
        layer.base_layer = torch.nn.Identity()
        layer.lora_B["default"].weight = torch.nn.Parameter(torch.randn(WIDTH, RANK))
        x = inputs().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), keeping() as kept:
            layer(x)
        assert [(tuple(each.shape), each.dtype) for each in kept] == [((N, RANK), torch.bfloat16)]

    def test_of_dropout_the_mask_or_nothing(self) -> None:
        """A byte an element, or the seed."""
        x = inputs(torch.bfloat16).requires_grad_()
        for dropout, mask in (("mask", [((N, M), torch.bool)]), ("recompute", [])):
            how: Any = dropout
            model = lorafa.prepare(adapted(torch.bfloat16, lora_dropout=0.3).train(), dropout=how)
            found = self.kept(model, x)
            assert sorted(found, key=str) == sorted([((N, RANK), torch.bfloat16), *mask], key=str)

    def test_nothing_is_cast_for_lora_fb(self) -> None:
        """The input as it came, of which others keep the same storage; PEFT keeps a copy of it in fp32."""
        x = inputs(torch.bfloat16).requires_grad_()
        model = adapted(torch.bfloat16, adapter_dtype=torch.float32)
        assert ((2, 6, M), torch.float32) in self.kept(model, x)
        assert self.kept(lorafa.prepare(model, trains="A"), x) == []

    def test_nothing_without_gradients(self) -> None:
        """Under no_grad."""
        model = prepared()
        with torch.no_grad():
            assert self.kept(model, inputs()) == []


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, msg=name, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


class TestSurroundings:
    """Autocast, checkpointing, compilation."""

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("dropout", ["mask", "recompute"])
    def test_checkpointing(self, reentrant: bool, dropout: Any) -> None:
        """The same gradients to the bit, with dropout: what is computed again drops the same."""
        model = lorafa.prepare(adapted(lora_dropout=0.3).train(), dropout=dropout)
        x = inputs().requires_grad_()
        torch.manual_seed(3)
        model(x).square().sum().backward()
        expected, expected_x = gradients(model), x.grad
        model.zero_grad()
        x.grad = None
        torch.manual_seed(3)
        out: Any = checkpoint(model, x, use_reentrant=reentrant)
        out.square().sum().backward()
        assert_same(gradients(model), expected)
        assert torch.equal(x.grad, expected_x)

    @pytest.mark.parametrize("trains", ["A", "B"])
    def test_autocast(self, trains: str) -> None:
        """Within 2 % of fp32's result and gradients, which have the parameters' dtype; the products are in bf16."""
        model = prepared(trains=trains)
        model(inputs()).sin().sum().backward()
        exact = gradients(model)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(inputs())
            assert model.base_model.model.up(inputs()).dtype == torch.bfloat16
        out.sin().sum().backward()
        for name, value in gradients(model).items():
            assert value.dtype == torch.float32
            assert (value - exact[name]).norm() < 0.05 * exact[name].norm(), name

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer does
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("trains", ["A", "B"])
    def test_compile(self, trains: str, dropout: float) -> None:
        """One graph without a break. Without dropout the gradients are those of eager; with it they are finite."""
        model = prepared(trains=trains, lora_dropout=dropout).train()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled(inputs()).square().sum().backward()
        found = gradients(model)
        model.zero_grad()
        model(inputs()).square().sum().backward()
        if dropout:
            assert found.keys() == gradients(model).keys()
            assert all(bool(value.isfinite().all()) and bool(value.any()) for value in found.values())
        else:
            assert_same(found, gradients(model), rtol=1e-5, atol=1e-5)
        torch.compiler.reset()
