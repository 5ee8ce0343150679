"""The optimizer takes the steps of the paper's algorithm, and those of PEFT's optimizer."""

from __future__ import annotations

import io
import math
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, strategies as st

from lorafa_prof import lorafa
from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.lorafa import gram, optimizer as ours
from tests.analytic.runs import HAS_LORAFA
from tests.lorafa.models import RANK, adapted, inputs, prepared, train, trained

LR, STEPS = 1e-2, 20


class Reference:
    """The paper's algorithm as it is written, a parameter at a time, in float64: no Cholesky, nothing kept, no batch.

    The theorem's gradient is found by least squares from its statement: of all changes X of B that whose update of W,
    s X A, is nearest to one with the gradient's product, s g A^T = g_B; that is X = g_B (s A)+T / s with the
    pseudo-inverse of A, made by SVD in each step.
    """

    def __init__(self, model: Any, lr: float = LR, weight_decay: float = 0.0) -> None:
        self.model, self.lr, self.weight_decay = model, lr, weight_decay
        self.moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._step(name, parameter)

    def _step(self, name: str, parameter: torch.nn.Parameter) -> None:
        gradient = self._gradient(name, parameter)
        m, v = self.moments.get(name, (torch.zeros_like(gradient), torch.zeros_like(gradient)))
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        self.moments[name] = m, v
        size = self.lr * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        parameter -= size * m / (v.sqrt() + 1e-6)
        parameter -= self.lr * self.weight_decay * parameter

    def _gradient(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        assert parameter.grad is not None
        if "lora_" not in name:
            return parameter.grad
        layer = self.model.get_submodule(name.partition(".lora_")[0])
        s = layer.scaling["default"]
        if "lora_B" in name:
            inverse = torch.linalg.pinv(layer.lora_A["default"].weight)  # (m, r)
            return parameter.grad @ inverse.T @ inverse / s**2
        inverse = torch.linalg.pinv(layer.lora_B["default"].weight)  # (r, k)
        return inverse @ inverse.T @ parameter.grad / s**2

    def zero_grad(self) -> None:
        self.model.zero_grad()


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two parameters relative to how long the second is."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).double().norm() / other[k].double().norm()) for k in other)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"left": 6}, "alpha_pattern": {"down": 3}},
    "others": {"modules_to_save": ["norm"]},
}


class TestThePapersAlgorithm:
    """Against the reference, in float64."""

    @pytest.mark.parametrize("trains", ["B", "A"])
    @pytest.mark.parametrize("config", CONFIGS)
    def test_twenty_steps_are_the_references(self, config: str, trains: str) -> None:
        """To 1e-9: every module with its own scaling and rank; LoRA-FB as well; other parameters by AdamW alone."""
        model = prepared(torch.float64, trains=trains, **CONFIGS[config])
        other = prepared(torch.float64, trains=trains, **CONFIGS[config])
        before = trained(model)
        losses = train(model, lorafa.LoraFA(model, lr=LR, weight_decay=0.1), STEPS)
        reference: Any = Reference(other, weight_decay=0.1)
        expected = train(other, reference, STEPS)
        assert distance(trained(model), trained(other)) < 1e-9
        assert losses == pytest.approx(expected, rel=1e-9)
        assert min(float((trained(model)[k] - before[k]).norm()) for k in before) > 0

    def test_the_direction_is_the_projection_of_the_full_gradient(self) -> None:
        """Theorem 4.1: the update of W that G makes, s G A, is g P_A, the full gradient on the rows of A."""
        model = prepared(torch.float64)
        optimizer = lorafa.LoraFA(model, lr=LR)
        layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
        for layer in layers.values():
            layer.base_layer.weight.requires_grad_(True)  # to see the full gradient
        model(inputs(torch.float64)).square().sum().backward()
        optimizer.step()
        for path, layer in layers.items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            direction = optimizer.state[b]["exp_avg"] / 0.1
            rows = torch.linalg.qr(a.T).Q
            torch.testing.assert_close(
                layer.scaling["default"] * direction @ a, layer.base_layer.weight.grad @ rows @ rows.T,
                rtol=1e-9, atol=1e-12, msg=path,
            )  # fmt: skip

    def test_a_parameter_without_a_gradient_stays(self) -> None:
        """Nor does its count of steps go on; later it is corrected for its own count."""
        model, other = prepared(torch.float64), prepared(torch.float64)
        optimizer, alone = lorafa.LoraFA(model, lr=LR), lorafa.LoraFA(other, lr=LR)
        weight = model.base_model.model.left.lora_B["default"].weight
        before = weight.detach().clone()
        model(inputs(torch.float64)).square().sum().backward()
        weight.grad = None
        optimizer.step()
        assert torch.equal(weight, before)
        assert weight not in optimizer.state or not optimizer.state[weight]
        gradient = torch.ones_like(weight)
        weight.grad, twin = gradient, other.base_model.model.left.lora_B["default"].weight
        twin.grad = gradient
        optimizer.step()
        alone.step()
        torch.testing.assert_close(weight, twin, rtol=1e-12, atol=0.0)

    @pytest.mark.parametrize("trains", ["B", "A"])
    def test_the_other_ways_to_compute_agree(self, trains: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the fused kernel, and with modules of one shape in one product, as on a GPU."""
        model, batched = prepared(torch.float64, trains=trains), prepared(torch.float64, trains=trains)
        train(model, lorafa.LoraFA(model, lr=LR, weight_decay=0.1), STEPS)
        sizes = []
        batch = lorafa.LoraFA._batch
        monkeypatch.setattr(lorafa.LoraFA, "_batch", lambda self, of: sizes.append(len(of)) or batch(self, of))
        train(batched, lorafa.LoraFA(batched, lr=LR, weight_decay=0.1, fused=False, batched=True), STEPS)
        assert distance(trained(batched), trained(model)) < 1e-12
        assert max(sizes) == 3
        sizes.clear()
        monkeypatch.setattr(ours, "ROWS", 2 * 40)  # of B's rows, or of A's columns
        again = prepared(torch.float64, trains=trains)
        train(again, lorafa.LoraFA(again, lr=LR, weight_decay=0.1, fused=False, batched=True), STEPS)
        assert distance(trained(again), trained(model)) < 1e-12
        assert max(sizes) == 2

    @given(step=st.integers(1, 2000), decay=st.floats(0, 1), lr=st.floats(0, 1))
    def test_decay_goes_into_the_fused_step(self, step: int, decay: float, lr: float) -> None:
        """(p - size u)(1 - lr wd), whatever the step, the rate and the decay; a rate of zero changes nothing."""
        parameter = torch.nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.float64))
        parameter.grad = torch.tensor([0.3, -0.7], dtype=torch.float64)
        model = prepared(torch.float64)
        optimizer = lorafa.LoraFA(model, lr=lr, weight_decay=decay)
        optimizer.param_groups[0]["params"] = [parameter]
        zeros = torch.zeros_like(parameter)
        optimizer.state[parameter] = {"step": torch.tensor(step - 1.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        size = lr * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        move = size * 0.1 * parameter.grad / ((0.001 * parameter.grad**2).sqrt() + 1e-6)
        expected = (parameter.detach() - move) * (1 - lr * decay)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not HAS_LORAFA, reason="this PEFT has no LoRA-FA optimizer")
class TestPefts:
    """Against PEFT's optimizer, with PEFT's own forward on its side."""

    def both(self, dtype: torch.dtype, **config: Any) -> tuple[float, float]:
        from peft.optimizers import create_lorafa_optimizer

        model, theirs = prepared(dtype, **config), adapted(dtype, **config)
        begin = trained(model)
        peft_optimizer = create_lorafa_optimizer(theirs, r=RANK, lora_alpha=2 * RANK, lr=LR, weight_decay=0.1)
        train(model, lorafa.LoraFA(model, lr=LR, weight_decay=0.1), STEPS)
        train(theirs, peft_optimizer, STEPS)
        return distance(trained(model), trained(theirs)), distance(begin, trained(theirs))

    def test_the_same_trajectory_in_float64(self) -> None:
        """To 1e-6: PEFT adds 1e-8 to the diagonal of A A^T, whose smallest eigenvalue is near 0.2 here."""
        apart, moved = self.both(torch.float64)
        assert apart < 1e-6
        assert moved > 0.1

    def test_the_same_trajectory_in_fp32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """To 1e-4, with PEFT's product in fp32: it is in bf16 otherwise."""
        monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda: False)
        apart, _ = self.both(torch.float32)
        assert apart < 1e-4

    def test_the_same_trajectory_but_for_pefts_bf16(self) -> None:
        """As PEFT comes: it rounds the corrected gradient to 8 bits, which is all that its trajectory differs by."""
        apart, moved = self.both(torch.float32)
        assert 1e-6 < apart < 0.02
        assert apart < moved / 10


class TestMasterWeights:
    """16-bit adapters are stepped in fp32."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_small_steps_are_not_lost(self, dtype: torch.dtype) -> None:
        """Ten thousandths of a step that 16 bits would round away add up, as they do in fp32."""
        model = prepared(dtype)
        optimizer = lorafa.LoraFA(model, lr=1e-5)
        weight = model.base_model.model.left.lora_B["default"].weight
        with torch.no_grad():
            weight.fill_(1.0)
        for _ in range(800):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        correction = optimizer._trained[weight].correction
        assert correction is not None
        expected = 1 - 800 * 1e-5 * torch.sign(weight.grad.float() @ correction)  # Adam's step for one gradient
        torch.testing.assert_close(optimizer.state[weight]["master"], expected, rtol=1e-4, atol=0.0)
        torch.testing.assert_close(weight.float(), expected, rtol=2**-8, atol=0.0)
        assert not torch.equal(weight, torch.ones_like(weight))
        assert weight.dtype == dtype

    def test_what_others_write_counts(self) -> None:
        """A loaded adapter is not overwritten by the master copy of the one before."""
        model = prepared(torch.bfloat16)
        optimizer = lorafa.LoraFA(model, lr=1e-5)
        train(model, optimizer, 2)
        weight = model.base_model.model.left.lora_B["default"].weight
        with torch.no_grad():
            weight.copy_(torch.full_like(weight, 3.0))
        train(model, optimizer, 1)
        torch.testing.assert_close(weight, torch.full_like(weight, 3.0), rtol=1e-2, atol=0.0)


class TestStates:
    """What is saved, loaded and kept."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_training_goes_on_where_it_was_saved(self, dtype: torch.dtype) -> None:
        """To the bit, through torch.save, weights-only; of bf16 adapters the fp32 states stay fp32."""
        straight, model = prepared(dtype), prepared(dtype)
        train(straight, lorafa.LoraFA(straight, lr=LR), 10)
        optimizer = lorafa.LoraFA(model, lr=LR)
        train(model, optimizer, 5)
        file = io.BytesIO()
        torch.save({"optimizer": optimizer.state_dict(), "adapter": peft.get_peft_model_state_dict(model)}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = prepared(dtype)
        peft.set_peft_model_state_dict(again, saved["adapter"])
        resumed = lorafa.LoraFA(again, lr=1.0)
        resumed.load_state_dict(saved["optimizer"])
        floats = [v for state in resumed.state.values() for v in state.values()]
        assert {value.dtype for value in floats} == {torch.float32}
        train(again, resumed, 5, first=5)
        for name, value in trained(straight).items():
            assert torch.equal(trained(again)[name], value), name

    def test_the_states_are_of_bs_shape(self) -> None:
        """Two moments of each B, and nothing for A."""
        model = prepared()
        optimizer = lorafa.LoraFA(model)
        train(model, optimizer, 1)
        parameters = [p for n, p in model.named_parameters() if "lora_B" in n]
        assert set(optimizer.state) == set(parameters)
        for parameter in parameters:
            state = optimizer.state[parameter]
            assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape


class TestCorrections:
    """The inverse is made when it has to be, and only then."""

    def test_once_and_again_when_a_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four Gram matrices for four modules; none in twenty steps; one when one A has been loaded anew."""
        made = []
        real = gram.gram
        monkeypatch.setattr(gram, "gram", lambda pair, side: made.append(pair.path) or real(pair, side))
        model = prepared(torch.float64)
        optimizer = lorafa.LoraFA(model, lr=LR)
        assert len(made) == 4
        train(model, optimizer, STEPS)
        assert len(made) == 4
        layer = model.base_model.model.left
        with torch.no_grad():
            layer.lora_A["default"].weight.mul_(2.0)
        before = optimizer._trained[layer.lora_B["default"].weight].correction
        assert before is not None
        train(model, optimizer, 1)
        assert made[4:] == ["base_model.model.left"]
        torch.testing.assert_close(optimizer._trained[layer.lora_B["default"].weight].correction, before / 4)

    def test_a_new_parameter_in_as_place(self) -> None:
        """Assigned, as `load_state_dict(assign=True)` does."""
        model = prepared(torch.float64)
        optimizer = lorafa.LoraFA(model, lr=LR)
        layer = model.base_model.model.left
        weight = layer.lora_A["default"].weight
        before = optimizer._trained[layer.lora_B["default"].weight].correction
        assert before is not None
        layer.lora_A["default"].weight = torch.nn.Parameter(weight.detach() * 2, requires_grad=False)
        train(model, optimizer, 1)
        torch.testing.assert_close(optimizer._trained[layer.lora_B["default"].weight].correction, before / 4)


class TestRefusals:
    """What cannot be corrected is an error that names the module."""

    @pytest.mark.parametrize("how", ["a zero row", "two equal rows", "nearly dependent rows", "not a number"])
    def test_a_without_full_rank(self, how: str) -> None:
        """Before the first step; with damping it goes on, as PEFT's optimizer does."""
        model = prepared()
        weight = model.base_model.model.right.lora_A["default"].weight
        with torch.no_grad():
            weight[1] = {"a zero row": 0.0, "two equal rows": 2 * weight[0], "not a number": math.nan}.get(
                how, weight[0] * (1 + 1e-7 * torch.rand(40))
            )
        with pytest.raises(BadInputError, match=r"base_model\.model\.right: the frozen A \(4, 40\) has no full rank"):
            lorafa.LoraFA(model)
        if how != "not a number":
            train(model, lorafa.LoraFA(model, damping=1e-4), 1)

    def test_a_that_trains(self) -> None:
        """PEFT's adapters as they come, which train both; and one that is trained again between two steps."""
        with pytest.raises(
            BadInputError, match=r"base_model\.model\.up: both A and B of this adapter train; lorafa.prep"
        ):
            lorafa.LoraFA(adapted())
        model = prepared()
        optimizer = lorafa.LoraFA(model)
        model.base_model.model.left.lora_A["default"].weight.requires_grad_(True)
        with pytest.raises(BadInputError, match=r"base_model\.model\.left: both A and B"):
            optimizer.step()

    def test_an_adapter_that_does_not_train(self) -> None:
        """As one loaded for inference."""
        model = adapted()
        model.requires_grad_(False)
        with pytest.raises(BadInputError, match="neither A nor B"):
            lorafa.LoraFA(model)

    def test_a_model_without_adapters(self) -> None:
        """It says how to make some."""
        with pytest.raises(BadInputError, match=r"peft\.get_peft_model"):
            lorafa.LoraFA(torch.nn.Linear(2, 2))

    @pytest.mark.parametrize(
        ("config", "what"),
        [
            (peft.LoraConfig(r=2, target_modules=["up"], use_dora=True), "model.up: Do"),
            (peft.LoraConfig(r=2, target_modules=["up"], lora_bias=True), "model.up: lora_bias=True"),
            (peft.VeraConfig(r=2, target_modules=["left"]), "model.left: .* is no LoRA layer"),
        ],
    )
    def test_other_adapters(self, config: Any, what: str) -> None:
        """DoRA, a bias of B, other methods."""
        from tests.lorafa.models import Net

        with pytest.raises(UnsupportedError, match=what):
            lorafa.prepare(peft.get_peft_model(Net(), config))

    @pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": math.nan}, {"damping": -1e-8}])
    def test_numbers_out_of_range(self, options: Any) -> None:
        """Named in the error."""
        with pytest.raises(BadInputError, match=next(iter(options))):
            lorafa.LoraFA(prepared(), **options)
