"""A run that keeps its promises is told so, and one that does not is told what that costs.

Costs are held to measured steps: the same run traced twice on the CPU, once as promised and once not. "To the byte"
means the bytes that the tracer hears from the allocator, which knows nothing of autograd's hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorafa_prof.measure import harness
from lorafa_prof.measure.devices import open_device
from lorafa_prof.measure.harness import Options, measure, traced_step
from lorafa_prof.measure.look import Look
from lorafa_prof.measure.promises import check_promises, checked_twice
from lorafa_prof.results import Measurement, Promise
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload import Workload, training_step
from lorafa_prof.workload.parallel import Group
from lorafa_prof.workload.quantized import quantization_tensors
from lorafa_prof.workload.versions import release
from tests.analytic.runs import EAGER_ONLY, HAS_LORAFA, run_of

FROZEN_A, FROZEN_B, SHARED = "frozen A", "frozen B", "frozen shared matrices"
LAYERS = "adapted layers"
BASE, DTYPE, CHECKPOINTING = "base weights without gradients", "adapter dtype", "checkpointing"
ATTENTION, QUANTISED, OPTIMIZER = "attention kernel", "quantised weights", "optimizer"
CACHE, DROPOUT, MODE, AUTOCAST = "use_cache off", "adapter dropout", "training mode", "autocast"

Sabotage = Callable[[Workload], None]
needs_lorafa = pytest.mark.skipif(not HAS_LORAFA, reason="this PEFT has no LoRA-FA optimizer")


def ready(run: RunSpec, steps: int = 1) -> Workload:
    """The run after its warm-up."""
    work = Workload.build(run, "cpu")
    for _ in range(steps):
        training_step(work)
    return work


def looked_at(work: Workload) -> Look:
    with Look() as look:
        work.loss().backward()
    work.optimizer.zero_grad(set_to_none=True)
    return look


def promises(work: Workload, asked: RunSpec | None = None, **seen: Any) -> dict[str, Promise]:
    """All that can be judged of a workload, as the run that it was built for, or as another one that was `asked`."""
    found = check_promises(work.model, work.optimizer, asked or work.run, forward=work.loss, **seen)
    return {promise.name: promise for promise in found}


def violations(work: Workload, asked: RunSpec | None = None, **seen: Any) -> dict[str, Promise]:
    return {name: promise for name, promise in promises(work, asked, **seen).items() if not promise.kept}


class Observed:
    """A traced step: saved activations, the peak and its moment."""

    def __init__(self, work: Workload) -> None:
        trace, attribution = traced_step(work, open_device("cpu"))
        self.saved, self.peak = attribution.saved_activation_bytes(), trace.peak
        self.moment = attribution.ledger().moment


# -- what is promised and kept ---------------------------------------------------------------------------------------

HONEST: list[Any] = [
    ("llama", "lora-fa", {}),
    ("llama", "lora-fa", {"optimizer": "adamw", "dropout": 0.1}),
    ("llama", "lora-fa-peft", {"adapter_dtype": "bf16", "attn": "eager"}),
    ("llama", "lora-fb", {"checkpointing": "full", "amp": True}),
    ("llama", "qlora-fa", {}),
    ("llama", "qlora", {"quant": "nf4-dq", "checkpointing": "full"}),
    ("llama", "qlora", {"quant": "int8"}),
    ("llama", "lora", {"rank": 96, "optimizer": "adamw-8bit", "attn": "flash"}),
    ("llama", "full", {"checkpointing": "full"}),
    ("gpt2", "lora", {"optimizer": "adamw-fused"}),
    ("llama", "full", {"optimizer": "adafactor"}),
    ("gpt2", "qlora", {}),
    ("gpt2", "vera", {"amp": True, "dtype": "fp32"}),
    ("roberta", "lora", {"optimizer": "sgd"}),
    ("t5", "vera", {}),
    ("t5", "lora", {"adapted": (1,)}),
    ("mixtral", "lora-fa-peft", {"optimizer": "adamw"}),
    ("gemma2", "lora", {}),
    ("llama", "lora-pro", {}),
    ("llama", "lora-ga", {}),
    ("gpt2", "lora-pro", {"optimizer": "lora-pro-full"}),
]


@pytest.mark.parametrize(("family", "method", "options"), HONEST)
def test_an_honest_run_keeps_every_promise(family: str, method: str, options: dict[str, Any]) -> None:
    """With what a look at a step tells among them; and nothing costs anything."""
    if not HAS_LORAFA and method.endswith(("-fa", "-peft")):
        pytest.skip("this PEFT has no LoRA-FA optimizer")
    if options.get("quant") == "int8" and release("peft") < (0, 14):
        pytest.skip("this PEFT reads a field of int8 layers that bitsandbytes no longer has")
    work = ready(run_of(family, method, **options))
    found = promises(work, look=looked_at(work))
    assert {name: promise.detail for name, promise in found.items() if not promise.kept} == {}
    assert all(promise.cost_bytes is None for promise in found.values())
    adapted = {BASE, DTYPE, DROPOUT} if method != "full" else set()
    frozen = {"lora-fb": {FROZEN_B}, "vera": {SHARED}}.get(method, {FROZEN_A} if "-fa" in method else set())
    always = {CHECKPOINTING, ATTENTION, QUANTISED, OPTIMIZER, CACHE, MODE, AUTOCAST}
    some = {LAYERS} if "adapted" in options else set()
    assert set(found) == always | adapted | frozen | some


# -- frozen matrices and base weights --------------------------------------------------------------------------------


def disable_and_enable(work: Workload) -> None:
    """What an evaluation of the base model does in the midst of training."""
    with work.model.disable_adapter():  # type: ignore[operator]
        pass


def set_adapter(work: Workload) -> None:
    work.model.set_adapter("default")  # type: ignore[operator]


def train_shared(work: Workload) -> None:
    for path, tensor in work.model.named_buffers():
        if "vera_A" in path:
            tensor.requires_grad_(True)


def train_one_base_weight(work: Workload) -> None:
    weights = (p for path, p in work.model.named_parameters() if path.endswith("down_proj.base_layer.weight"))
    next(weights).requires_grad_(True)


FROZEN_CASES: list[Any] = [
    pytest.param("llama", "lora-fa-peft", {}, disable_and_enable, FROZEN_A, marks=needs_lorafa),
    pytest.param("llama", "lora-fa-peft", {}, set_adapter, FROZEN_A, marks=needs_lorafa),
    ("llama", "lora-fa-peft", {"optimizer": "adamw"}, disable_and_enable, FROZEN_A),
    pytest.param("llama", "lora-fa-peft", {"adapter_dtype": "bf16"}, disable_and_enable, FROZEN_A, marks=needs_lorafa),
    pytest.param("llama", "lora-fa-peft", {"amp": True}, disable_and_enable, FROZEN_A, marks=needs_lorafa),
    pytest.param("llama", "lora-fa-peft", {"dropout": 0.1}, disable_and_enable, FROZEN_A, marks=needs_lorafa),
    pytest.param("llama", "lora-fa-peft", {"quant": "nf4"}, disable_and_enable, FROZEN_A, marks=needs_lorafa),
    ("gpt2", "lora-fa-peft", {"optimizer": "adamw"}, disable_and_enable, FROZEN_A),
    ("mixtral", "lora-fa-peft", {"optimizer": "adamw"}, disable_and_enable, FROZEN_A),
    ("llama", "lora-fb", {}, disable_and_enable, FROZEN_B),
    ("llama", "vera", {}, train_shared, SHARED),
    ("llama", "lora", {}, train_one_base_weight, BASE),
]


@pytest.mark.parametrize(("family", "method", "options", "sabotage", "name"), FROZEN_CASES)
def test_what_is_trained_in_spite_of_a_promise_costs_what_is_observed(
    family: str, method: str, options: dict[str, Any], sabotage: Sabotage, name: str
) -> None:
    """To the byte: activations that the forward saves, and gradients that no optimizer clears.

    PEFT's LoRA-FA optimizer holds A and clears its gradient: at the peak, when the loss is computed, there is none. An
    AdamW that was made for B alone never clears A's, which then stays from step to step, and is there at the peak.
    Where the peak comes at another moment than before (GPT-2 of older releases), it has risen by less.
    """
    work = ready(run_of(family, method, **options), steps=2)
    before = Observed(work)
    sabotage(work)
    training_step(work)
    (promise,) = violations(work).values()
    assert promise.name == name
    after = Observed(work)
    tensors = [*work.model.parameters(), *work.model.buffers()]
    kept = sum(t.grad.nbytes for t in tensors if t.grad is not None)
    held = {id(p) for group in work.optimizer.param_groups for p in group["params"]}
    assert kept == sum(t.nbytes for t in tensors if t.requires_grad and id(t) not in held)
    assert promise.cost_bytes == after.saved - before.saved + kept
    rise = after.peak - before.peak
    assert rise == promise.cost_bytes if after.moment == before.moment else 0 < rise < promise.cost_bytes


def test_adapters_in_other_layers_than_asked() -> None:
    """In all where the last was asked for: what they cost is what a run without them is smaller by, to the byte."""
    run = run_of("llama", "lora", layers=4, adapted=(3,))
    everywhere, asked = ready(run.replace(method=replace(run.method, layers=None)), steps=2), ready(run, steps=2)
    (promise,) = violations(everywhere, run).values()
    assert (promise.name, promise.detail) == (LAYERS, "asked for: 3 of 4; adapters are in 0-3")
    more, less = Observed(everywhere), Observed(asked)

    def held(work: Workload) -> int:
        """Parameters and AdamW's states of them, its counters of steps left out."""
        states = (t for state in work.optimizer.state.values() for t in state.values() if t.dim())
        return sum(t.nbytes for t in (*work.model.parameters(), *states))

    assert promise.cost_bytes == held(everywhere) - held(asked) + more.saved - less.saved


def test_adapters_that_are_missing() -> None:
    """Cost nothing, and are said to be."""
    run = run_of("llama", "lora", layers=4, adapted=(3,))
    found = violations(ready(run), run.replace(method=replace(run.method, layers=(2, 3))))
    assert (found[LAYERS].detail, found[LAYERS].cost_bytes) == ("asked for: 2-3 of 4; adapters are in 3", None)


@needs_lorafa
def test_where_the_peak_moves_the_cost_bounds_it() -> None:
    """T5's tiny vocabulary: the promised run peaks elsewhere, so that the peak rises by less than the activations."""
    work = ready(run_of("t5", "lora-fa-peft"), steps=2)
    before = Observed(work)
    disable_and_enable(work)
    training_step(work)
    cost = violations(work)[FROZEN_A].cost_bytes
    after = Observed(work)
    assert cost == after.saved - before.saved
    assert 0 < after.peak - before.peak <= cost


@needs_lorafa
def test_under_checkpointing_the_cost_is_that_of_one_layer() -> None:
    """A checkpointed layer saves its inputs only while it is computed again: all layers' are never there together."""
    checkpointed = run_of("llama", "lora-fa-peft", layers=4, checkpointing="full")
    work = ready(checkpointed, steps=2)
    before = Observed(work)
    disable_and_enable(work)
    training_step(work)
    cost = violations(work)[FROZEN_A].cost_bytes
    after = Observed(work)
    plain = ready(checkpointed.replace(checkpointing="none"))
    disable_and_enable(plain)
    every_layer = violations(plain)[FROZEN_A].cost_bytes
    if cost is None:  # transformers before 4.53 has one flag for all layers
        pytest.skip("the layers have no flag of their own")
    assert every_layer == 4 * cost
    assert 0 < after.peak - before.peak <= cost


def test_states_of_what_should_be_frozen_are_counted() -> None:
    """An optimizer that was given A after all: two fp32 moments of each, seen in its state."""
    work = ready(run_of("llama", "lora-fa-peft", optimizer="adamw"))
    disable_and_enable(work)
    a = [p for path, p in work.model.named_parameters() if "lora_A" in path]
    work.optimizer.add_param_group({"params": a})
    training_step(work)
    with_states = violations(work)[FROZEN_A].cost_bytes
    for p in a:
        p.requires_grad_(False)
    assert violations(work)[FROZEN_A].cost_bytes == 2 * sum(p.nbytes for p in a)  # frozen, yet with states
    for p in a:
        del work.optimizer.state[p]
    assert FROZEN_A not in violations(work)
    disable_and_enable(work)
    assert violations(work)[FROZEN_A].cost_bytes == with_states - 2 * sum(p.nbytes for p in a)


def test_the_check_changes_nothing() -> None:
    """Neither what is trained, nor gradients, nor the random numbers that come next, though it ran forwards."""
    work = ready(run_of("llama", "lora-fa-peft", optimizer="adamw", dropout=0.1, checkpointing="full"))
    disable_and_enable(work)

    def state() -> tuple[Any, ...]:
        parameters = [(p.requires_grad, p.grad, p.dtype, p.data_ptr()) for p in work.model.parameters()]
        flags = [getattr(m, "gradient_checkpointing", None) for m in work.model.modules()]
        return parameters, flags, torch.random.get_rng_state().tolist()

    before = state()
    assert set(violations(work, work.run.replace(adapter_dtype="bf16"))) == {FROZEN_A, DTYPE}
    assert state() == before


def test_without_a_forward_to_run_the_activations_stay_unknown() -> None:
    """The violation is told all the same."""
    work = ready(run_of("llama", "lora-fa-peft", optimizer="adamw"))
    disable_and_enable(work)
    (promise,) = (p for p in check_promises(work.model, work.optimizer, work.run) if not p.kept)
    assert (promise.name, promise.cost_bytes) == (FROZEN_A, None)
    assert "disable_adapter()" in promise.detail
    assert "unknown" in promise.detail


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_forward_that_fails_leaves_the_cost_unknown(checkpointing: str) -> None:
    """For want of memory, say: the violation is told, flags and trained parameters are as before, nothing is raised."""
    work = ready(run_of("llama", "lora-fa-peft", optimizer="adamw", checkpointing=checkpointing))
    disable_and_enable(work)
    flags = [getattr(module, "gradient_checkpointing", None) for module in work.model.modules()]
    calls: list[int] = []

    def once() -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("full")
        return work.loss()

    (promise,) = (p for p in check_promises(work.model, work.optimizer, work.run, forward=once) if not p.kept)
    assert (promise.name, promise.cost_bytes) == (FROZEN_A, None)
    assert [getattr(module, "gradient_checkpointing", None) for module in work.model.modules()] == flags
    assert all(p.requires_grad for path, p in work.model.named_parameters() if "lora_A" in path)


# -- one thing asked for, another one built --------------------------------------------------------------------------


def test_wider_adapters_cost_what_is_observed() -> None:
    """fp32 where bf16 was asked for: the difference of two whole runs at their peaks, to the byte.

    The peak comes with the loss, before the backward makes gradients: weights, states and saved activations.
    """
    wide = run_of("llama", "lora", adapter_dtype="fp32")
    narrow = wide.replace(adapter_dtype="bf16")
    work = ready(wide, steps=2)
    (promise,) = violations(work, narrow).values()
    assert promise.name == DTYPE
    assert promise.cost_bytes == Observed(work).peak - Observed(ready(narrow, steps=2)).peak


def test_narrower_adapters_cost_nothing() -> None:
    """They break the promise all the same: training in bf16 is not what was asked for."""
    narrow = run_of("llama", "lora", adapter_dtype="bf16")
    assert violations(ready(narrow), narrow.replace(adapter_dtype="fp32"))[DTYPE].cost_bytes == 0


def disable_checkpointing(work: Workload) -> None:
    model: Any = work.model
    newer = getattr(model, "activation_checkpointing_disable", None)
    (newer or model.gradient_checkpointing_disable)()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointing_that_is_silently_off_costs_what_is_observed(family: str) -> None:
    """To the byte, of what is saved at the end of the forward; it is seen by the flags, before any look."""
    work = ready(run_of(family, "lora", checkpointing="full"), steps=2)
    before = Observed(work)
    disable_checkpointing(work)
    promise = violations(work)[CHECKPOINTING]
    after = Observed(work)
    assert promise.cost_bytes == after.saved - before.saved
    assert 0 < after.peak - before.peak <= promise.cost_bytes


def test_flags_without_a_recomputation_are_a_violation() -> None:
    """The flags may be set and nobody look at them."""
    work = ready(run_of("llama", "lora", checkpointing="full"))
    assert CHECKPOINTING not in violations(work, look=looked_at(work))
    seen = Look()  # at nothing
    assert violations(work, look=seen)[CHECKPOINTING].detail.endswith("no recomputation was seen")
    trace, _ = traced_step(work, open_device("cpu"))
    assert CHECKPOINTING not in violations(work, trace=trace, look=seen)


def test_checkpointing_that_nobody_asked_for_is_told() -> None:
    """It costs time, not bytes."""
    work = ready(run_of("llama", "lora", checkpointing="full"))
    promise = violations(work, work.run.replace(checkpointing="none"), look=looked_at(work))[CHECKPOINTING]
    assert promise.cost_bytes is None


@pytest.mark.parametrize(("family", "options"), [("llama-bias", {}), ("gpt2", {}), ("llama-bias", {"dtype": "fp32"})])
def test_eager_attention_costs_its_scores(family: str, options: dict[str, Any]) -> None:
    """It is told by the configuration already, and the cost is that of scores and probabilities.

    The observed difference is smaller by what the fused kernel saves instead: a number in fp32 for each row of each
    head's scores, and its output in the model's dtype, which eager attention does not save. In some releases SDPA has a
    mask of its own in each layer.
    """
    eager = run_of(family, "lora", attn="eager", **options)
    work = ready(eager, steps=2)
    asked = eager.replace(attn="sdpa")
    (promise,) = violations(work, asked).values()
    assert promise.name == ATTENTION
    assert violations(work, asked, look=looked_at(work))[ATTENTION].cost_bytes == promise.cost_bytes
    model = eager.model
    rows = eager.bs * eager.seq * model.num_heads * model.num_layers
    wide = 4 if eager.dtype == "fp32" else 2
    instead = rows * (4 + model.head_dim * wide) + model.num_layers * eager.bs * eager.seq**2 * wide
    extra = Observed(work).saved - Observed(ready(asked, steps=2)).saved
    assert 0 <= promise.cost_bytes - extra <= instead


def test_the_kernel_that_ran_is_named() -> None:
    """The CPU's SDPA knows no dropout: it falls back to math, which is not what `--attn flash` promises."""
    run = run_of("gpt2", "lora", config_dropout=True)
    work = ready(run)
    look = looked_at(work)
    assert dict(look.attention) == {"math": run.model.num_layers}
    assert promises(work, look=look)[ATTENTION].detail == "asked for: sdpa; a forward ran math 2 times"
    promise = violations(work, run.replace(attn="flash"), look=look)[ATTENTION]
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        work.loss()
    scores = (run.seq, run.seq)
    assert promise.cost_bytes == sum(t.nbytes for t in kept.values() if t.dim() > 2 and t.shape[-2:] == scores)
    assert ATTENTION in violations(work, run.replace(attn="eager"), look=look)


@pytest.mark.parametrize("family", EAGER_ONLY)
def test_a_model_without_sdpa_breaks_no_promise(family: str) -> None:
    """transformers runs its eager code for it, whatever the default is."""
    work = ready(run_of(family, "lora"))
    promise = promises(work, look=looked_at(work))[ATTENTION]
    assert promise.kept
    assert "eager" in promise.detail


def scales_of(work: Workload) -> int:
    """What is kept beside packed weights, each once, without the tables of 4-bit and of 8-bit values.

    An int8 layer has handed its scales to the state of its product in its first forward.
    """
    states = [getattr(module, "state", None) for module in work.model.modules()]
    of_int8 = [state.SCB for state in states if isinstance(getattr(state, "SCB", None), torch.Tensor)]
    found = {t.data_ptr(): t for t in [*quantization_tensors(work.model), *of_int8]}
    return sum(t.nbytes for t in found.values() if t.numel() not in (16, 256))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("quant", ["nf4", "nf4-dq", "int8"])
def test_weights_that_are_not_quantised_cost_their_width(family: str, quant: Any) -> None:
    """16 bits where 4 or 8 were asked for: the weights' bytes less the packed ones with their scales."""
    if quant == "int8" and release("peft") < (0, 14):
        pytest.skip("this PEFT reads a field of int8 layers that bitsandbytes no longer has")
    asked = run_of(family, "qlora", quant=quant)
    plain, quantised = ready(run_of(family, "lora")), ready(asked)
    (promise,) = violations(plain, asked).values()
    assert promise.name == QUANTISED

    def weights(work: Workload) -> int:
        named = work.model.named_parameters()
        return sum(p.nbytes for path, p in named if path.endswith("base_layer.weight"))

    wide, narrow = weights(plain), weights(quantised)
    assert promise.cost_bytes == wide - narrow - scales_of(quantised)


def test_double_quantisation_is_told_from_single() -> None:
    """The scales take an eighth of a bit an element, or half a bit."""
    single, double = run_of("llama", "qlora"), run_of("llama", "qlora", quant="nf4-dq")
    work = ready(single)
    (promise,) = violations(work, double).values()
    assert promise.cost_bytes == scales_of(work) - scales_of(ready(double))
    assert violations(ready(double), single)[QUANTISED].cost_bytes == 0
    assert QUANTISED in violations(work, run_of("llama", "lora"))
    assert QUANTISED in violations(work, run_of("llama", "qlora", quant="int8"))


def test_one_layer_left_wide_is_found() -> None:
    """It is named."""
    work = ready(run_of("llama", "qlora"))
    layer: Any = work.model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    wide = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=torch.bfloat16)
    layer.base_layer = wide.requires_grad_(False)
    promise = violations(work)[QUANTISED]
    assert "1 of 14" in promise.detail
    assert "model.layers.1.mlp.down_proj" in promise.detail


def test_states_that_are_not_factored_cost_their_width() -> None:
    """AdamW's two moments of a matrix where a mean for each row and column was asked for."""
    asked = run_of("llama", "full", optimizer="adafactor")
    work = ready(asked.replace(optimizer="adamw"))
    (promise,) = violations(work, asked).values()
    full = [p for p in work.model.parameters() if p.requires_grad]
    factored = [4 * (sum(p.shape) if p.dim() == 2 else p.numel()) for p in full]
    assert promise.cost_bytes == sum(2 * p.nbytes for p in full) - sum(factored)


def test_states_that_are_not_8_bit_cost_their_width() -> None:
    """Two fp32 moments where two bytes and two scales a block of 256 were asked for; small parameters are fp32 anyway.

    The observed difference of the optimizer's states, without the two tables of 256 values that all parameters share.
    """
    narrow = run_of("llama", "lora", rank=96, optimizer="adamw-8bit")
    wide = narrow.replace(optimizer="adamw")
    work = ready(wide)
    (promise,) = violations(work, narrow).values()
    assert promise.name == OPTIMIZER

    def states(run: RunSpec) -> int:
        found = (state for state in ready(run).optimizer.state.values())
        return sum(
            t.nbytes for state in found for key, t in state.items()
            if isinstance(t, torch.Tensor) and t.dim() and "qmap" not in key
        )  # fmt: skip

    assert promise.cost_bytes == states(wide) - states(narrow)
    assert OPTIMIZER in violations(ready(narrow), wide)


@pytest.mark.parametrize(
    ("built", "asked"),
    [
        ("adamw", "sgd"), ("adamw-fused", "adamw"), ("adamw", "adamw-fused"), ("sgd", "adamw"),
        ("lora-pro", "lora-pro-full"), ("lora-pro-full", "lora-pro"), ("adamw", "lora-pro"),
    ],
)  # fmt: skip
def test_another_optimizer_is_told(built: str, asked: str) -> None:
    """By its class, by the implementation that steps, and by what it keeps moments of."""
    run = run_of("llama", "lora", optimizer=built)
    assert set(violations(ready(run), run.replace(optimizer=asked))) == {OPTIMIZER}


def test_the_small_switches() -> None:
    """Cache, dropout, mode and autocast, each against what was asked for."""
    work = ready(run_of("llama", "lora"))
    assert set(violations(work, work.run.replace(amp=True), look=looked_at(work))) == {AUTOCAST}
    under = ready(run_of("llama", "lora", amp=True))
    assert set(violations(under, work.run, look=looked_at(under))) == {AUTOCAST}
    assert set(violations(work, run_of("llama", "lora", dropout=0.1))) == {DROPOUT}
    work.model.config.use_cache = True  # type: ignore[union-attr]
    assert set(violations(work)) == {CACHE}
    work.model.config.use_cache = False  # type: ignore[union-attr]
    work.model.get_submodule("base_model.model.model.layers.1").eval()
    assert "layers.1" in violations(work)[MODE].detail


# -- a user's own script ---------------------------------------------------------------------------------------------


def of_script(work: Workload) -> dict[str, bool]:
    return {promise.name: promise.kept for promise in check_promises(work.model, work.optimizer)}


def test_plain_lora_promises_no_frozen_a() -> None:
    """Nothing says that A should be frozen."""
    assert of_script(ready(run_of("llama", "lora"))) == {BASE: True, MODE: True}


@pytest.mark.parametrize("method", ["lora-fa", "qlora-fa"])
@pytest.mark.parametrize("sabotage", [disable_and_enable, set_adapter])
def test_ours_stays_frozen(method: str, sabotage: Any) -> None:
    """What thaws PEFT's A leaves ours frozen, and the promise kept."""
    if method == "qlora-fa":
        pytest.importorskip("bitsandbytes")
    work = ready(run_of("llama", method))
    sabotage(work)
    assert not any(p.requires_grad for path, p in work.model.named_parameters() if "lora_A" in path)
    assert FROZEN_A not in violations(work)


def test_ours_stays_frozen_in_a_script() -> None:
    """There too, where the promise follows from the optimizer alone."""
    work = ready(run_of("llama", "lora-fa"))
    assert of_script(work)[FROZEN_A]
    disable_and_enable(work)
    assert of_script(work)[FROZEN_A]


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_ours_thawed_by_hand_is_told(checkpointing: str) -> None:
    """By name, with the cause that it can have; no forward says what it costs, since the layers refuse to run one."""
    work = ready(run_of("llama", "lora-fa", checkpointing=checkpointing))
    a = next(p for path, p in work.model.named_parameters() if "lora_A" in path)
    a.requires_grad_(True)
    (promise,) = violations(work).values()
    assert (promise.name, promise.cost_bytes) == (FROZEN_A, None)
    assert "requires_grad" in promise.detail
    assert "disable_adapter" not in promise.detail
    assert not of_script(work)[FROZEN_A]
    a.requires_grad_(False)
    assert promises(work)[FROZEN_A].kept


def test_states_of_our_frozen_a_are_counted() -> None:
    """An optimizer that was given A before it was frozen: its two fp32 moments are there, though no gradient is."""
    work = ready(run_of("llama", "lora-fa", optimizer="adamw"))
    a = next(p for path, p in work.model.named_parameters() if "lora_A" in path)
    work.optimizer.add_param_group({"params": [a]})
    a.grad = torch.zeros_like(a)
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)
    assert violations(work)[FROZEN_A].cost_bytes == 2 * a.nbytes


@pytest.mark.parametrize("optimizer", ["adamw", "lorafa", pytest.param("lorafa-peft", marks=needs_lorafa)])
def test_a_script_s_frozen_a_is_seen_to_thaw(optimizer: str) -> None:
    """By an optimizer that does not step A, or is LoRA-FA's own."""
    work = ready(run_of("llama", "lora-fa-peft", optimizer=optimizer))
    assert of_script(work)[FROZEN_A]
    disable_and_enable(work)
    assert not of_script(work)[FROZEN_A]


def test_some_a_trained_beside_frozen_ones_is_a_violation() -> None:
    """All of a kind, or something went wrong; a layer that is frozen as a whole is left alone."""
    work = ready(run_of("llama", "lora"))
    first = [p for path, p in work.model.named_parameters() if "layers.0" in path and "lora_" in path]
    for p in first:
        p.requires_grad_(False)
    assert FROZEN_A not in of_script(work)
    for p in first:
        p.requires_grad_(p.shape[0] != work.run.method.rank)  # B's rows are outputs, A's the rank
    assert not of_script(work)[FROZEN_A]


def test_base_weights_of_a_script() -> None:
    """Trained by mistake; but a module that PEFT keeps a trained copy of is meant to be."""
    work = ready(run_of("roberta", "lora"))
    assert any("modules_to_save" in path for path, p in work.model.named_parameters() if p.requires_grad)
    assert of_script(work)[BASE]
    next(p for path, p in work.model.named_parameters() if "word_embeddings" in path).requires_grad_(True)
    assert not of_script(work)[BASE]


def test_full_fine_tuning_of_a_script_promises_nothing() -> None:
    """Without adapters every weight may be trained."""
    assert of_script(ready(run_of("llama", "full"))) == {MODE: True}


# -- within a measurement --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "broken"), [("lora-fa-peft", [FROZEN_A]), ("lora-fa", [])])
def test_a_measurement_tells_violations_before_its_first_timed_step(
    monkeypatch: pytest.MonkeyPatch, method: str, broken: list[str]
) -> None:
    """Checked after warm-up, again at the end: with the kernels that ran, and the recomputation of the traced step.

    What thaws PEFT's A before the first step leaves ours as it is.
    """
    build = Workload.build

    def thawed(run: RunSpec, device: str, group: Group | None = None) -> Workload:
        work = build(run, device, group)
        disable_and_enable(work)
        return work

    monkeypatch.setattr(harness.Workload, "build", thawed)
    reports: list[Measurement] = []
    run = run_of("llama", method, optimizer="adamw", checkpointing="full")
    done = measure(run, Options(device="cpu", steps=1, warmup=1), reports.append)
    first = next(report for report in reports if report.promises)
    assert first.steps == ()
    assert [promise.name for promise in first.violations] == broken
    assert [promise.name for promise in done.violations] == broken
    details = {promise.name: promise.detail for promise in done.promises}
    assert details[CHECKPOINTING].endswith("a recomputation was seen")
    assert details[ATTENTION] == "asked for: sdpa; a forward ran flash 2 times"
    assert details[AUTOCAST] == "asked for: none; linear layers ran under none"


def test_what_was_violated_once_stays_so() -> None:
    """Though it is kept again at the end."""
    broken = Promise(name="a", kept=False, detail="then")
    found = checked_twice(
        [broken, Promise(name="b", kept=True, detail="then")],
        [Promise(name="a", kept=True, detail="now"), Promise(name="b", kept=True, detail="now")],
    )
    assert [(p.name, p.detail) for p in found] == [("a", "then"), ("b", "now")]


def test_a_look_leaves_no_hook() -> None:
    """Neither of modules nor of modes, also when the step fails."""
    work = ready(run_of("llama", "lora"))
    look = Look()
    with contextlib.suppress(ZeroDivisionError), look:
        work.loss()
        raise ZeroDivisionError
    counted = dict(look.attention)
    work.loss()
    assert dict(look.attention) == counted == {"flash": 2}
