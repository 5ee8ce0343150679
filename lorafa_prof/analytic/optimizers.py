"""Optimizer states and what a step of each optimizer makes for a moment.

The states are those after the first step, in which they are created. Sizes are bytes of single tensors, unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorafa_prof.analytic import lora_fa as lora_fa_step, lora_pro as lora_pro_step
from lorafa_prof.analytic.builder import Held
from lorafa_prof.analytic.sizes import Shape, rounded, size_of
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import Parameter
from lorafa_prof.errors import UnsupportedError
from lorafa_prof.specs import RunSpec


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One optimizer tensor: of which parameter, what, and how many real ones it stands for."""

    parameter: str
    name: str
    shape: Shape
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class OptimizerCost:
    """What an optimizer keeps, and the most that its step holds beside that."""

    states: tuple[StateTensor, ...]
    temporaries: tuple[StateTensor, ...]
    notes: tuple[str, ...] = ()
    managed: tuple[StateTensor, ...] | None = None
    """States in CUDA's managed memory, outside the allocator; None: the optimizer is not a paged one."""
    steps: Tape | None = None
    """Where what it holds comes and goes while it steps: the record of that, in place of `temporaries`."""


Rule = Callable[[Sequence[Held], RunSpec], OptimizerCost]


def _moments(trained: Sequence[Held], names: Sequence[str] = ("exp_avg", "exp_avg_sq")) -> tuple[StateTensor, ...]:
    """Both moments have the parameter's shape and dtype (zeros_like)."""
    return tuple(
        StateTensor(h.parameter.name, name, h.parameter.shape, h.parameter.dtype, h.count)
        for h in trained
        for name in names
    )


def adamw(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """torch.optim.AdamW, foreach: sqrt(exp_avg_sq) of all parameters of a dtype at once. Step counters are on the host.

    Groups of different dtypes follow one another; the first group's list is still bound while the second's is made.
    """
    return OptimizerCost(_moments(trained), _moments(trained, ("sqrt of exp_avg_sq",)))


def lora_plus(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """LoRA+ as PEFT makes it: AdamW, foreach, with A and B in groups of their own, which step one after the other."""
    groups = [[h for h in trained if ("lora_B" in h.parameter.name) is b] for b in (False, True)]
    largest = max(groups, key=lambda group: sum(rounded(h.parameter.size[0]) * h.count for h in group))
    return OptimizerCost(_moments(trained), _moments(largest, ("sqrt of exp_avg_sq",)))


def adamw_fused(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """torch.optim.AdamW, fused: no temporaries, but a step counter a parameter on the device."""
    steps = tuple(StateTensor(h.parameter.name, "step", (), "fp32", h.count) for h in trained)
    return OptimizerCost((*_moments(trained), *steps), ())


def sgd(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """torch.optim.SGD without momentum or weight decay: no state, no temporaries."""
    del trained
    return OptimizerCost((), ())


#: bitsandbytes keeps fp32 states for tensors smaller than this (min_8bit_size), and one scale a block of 256 else.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256


def adamw_8bit(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """bitsandbytes' AdamW8bit: a byte a moment and an fp32 scale a block of 256; two code tables in all.

    The tables go to the device with the first state in 8 bits.
    """
    states: list[StateTensor] = []
    if any(h.parameter.numel >= SMALLEST_8BIT for h in trained):
        states += [StateTensor("", f"qmap{i}", (256,), "fp32", 1) for i in (1, 2)]
    for h in trained:
        numel = h.parameter.numel
        small = numel < SMALLEST_8BIT
        for i in (1, 2):
            states.append(_flat(h, i, "fp32" if small else "uint8"))
            if not small:
                blocks = -(-numel // BLOCK_8BIT)
                states.append(StateTensor(h.parameter.name, f"absmax{i}", (blocks,), "fp32", h.count))
    return OptimizerCost(tuple(states), ())


#: bitsandbytes takes managed memory for states of so many elements (`get_state_buffer` in optim/optimizer.py).
SMALLEST_PAGED = 100_000


def paged_adamw(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """bitsandbytes' PagedAdamW: moments in fp32, whatever the parameters are in, large ones in managed memory."""
    return _paged(trained, [_flat(h, i, "fp32") for h in trained for i in (1, 2)])


def paged_adamw_8bit(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """bitsandbytes' PagedAdamW8bit: as AdamW8bit, but the moments of large parameters are in managed memory.

    Scales, code tables and small states are in the allocator's memory.
    """
    return _paged(trained, adamw_8bit(trained, run).states)


def _flat(h: Held, number: int, dtype: str) -> StateTensor:
    return StateTensor(h.parameter.name, f"state{number}", (h.parameter.numel,), dtype, h.count)


def _paged(trained: Sequence[Held], states: Iterable[StateTensor]) -> OptimizerCost:
    large = {h.parameter.name for h in trained if h.parameter.numel >= SMALLEST_PAGED}
    of_each: dict[bool, list[StateTensor]] = {True: [], False: []}
    for state in states:
        of_each[state.parameter in large and state.name in ("state1", "state2")].append(state)
    return OptimizerCost(tuple(of_each[False]), (), managed=tuple(of_each[True]))


def adafactor(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """transformers' Adafactor as its Trainer makes it (scale_parameter and relative_step off), parameter by parameter.

    A matrix has fp32 means of its rows and of its columns, anything else a full fp32 second moment; each parameter has
    its root mean square, a scalar, on the device. All is computed in fp32 from fp32 copies of 16-bit gradients and
    weights.
    """
    states = []
    for h in trained:
        p = h.parameter
        for name, shape in (*_second_moments(p.shape), ("RMS", ())):
            states.append(StateTensor(p.name, name, shape, "fp32", h.count))
    return OptimizerCost(tuple(states), max(_adafactor_moments(trained), key=_bytes, default=()))


def _second_moments(shape: Shape) -> tuple[tuple[str, Shape], ...]:
    if len(shape) < 2:
        return (("exp_avg_sq", shape),)
    return ("exp_avg_sq_row", shape[:-1]), ("exp_avg_sq_col", (*shape[:-2], shape[-1]))


def _adafactor_moments(trained: Sequence[Held]) -> Iterator[tuple[StateTensor, ...]]:
    """Yield what the step's variables hold where they hold most of each parameter.

    That is either while grad**2 + eps is made, with the update of the parameter before still bound, or while the new
    update is made from the second moments, with that sum still bound.
    """
    before: tuple[StateTensor, ...] = ()
    for h in trained:
        p = h.parameter

        def made(name: str, shape: Shape, p: Parameter = p) -> StateTensor:
            return StateTensor(p.name, name, shape, "fp32", 1)

        wide = ("gradient in fp32", "weight in fp32") if p.dtype != "fp32" else ()
        copies = tuple(made(name, p.shape) for name in wide)
        squared = made("grad**2 + eps", p.shape)
        yield (*before, *copies, made("grad**2", p.shape), squared)
        factors = [made(f"root of {name}", shape) for name, shape in _second_moments(p.shape) if len(p.shape) > 1]
        update = made("update", p.shape)
        yield (*copies, squared, *factors, update)
        before = (update,)


def _bytes(tensors: Iterable[StateTensor]) -> int:
    return sum(int(rounded(size_of(tensor.shape, tensor.dtype)[0])) * tensor.count for tensor in tensors)


def lorafa(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """Ours: moments in fp32, a copy in fp32 of what is not; of each pair the correction (r, r), made once.

    One number on the device stands for a step count, whichever it is.
    """
    del run
    states = [StateTensor("", "settled", (), lora_fa_step.WIDE, 1)]
    for h in trained:
        p = h.parameter
        named = [(name, p.shape) for name in ("exp_avg", "exp_avg_sq")]
        named += [("master", p.shape)] if p.dtype != lora_fa_step.WIDE else []
        named += [("correction", (p.shape[1], p.shape[1]))] if lora_fa_step.is_b(h) else []
        states += [StateTensor(p.name, name, shape, lora_fa_step.WIDE, h.count) for name, shape in named]
    return OptimizerCost(tuple(states), (), steps=lora_fa_step.step(trained))


def lorafa_peft(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """PEFT's LoRA-FA optimizer: moments of B, and module after module an r x r inverse and the projected gradient.

    Of one module at a time: A A^T and its inverse, and under the step's own bf16 autocast the casts of the inverse and
    of the gradient and their product. Beside these, the variables of the module before are still bound: its projected
    gradient and its denominator. Modules of one shape follow one another, so the largest decides.
    """
    adapters = [h for h in trained if "lora_B" in h.parameter.name]
    if not adapters:
        return OptimizerCost(_moments(trained), _largest(trained, ("denominator",)))
    largest = max(adapters, key=lambda h: h.parameter.numel).parameter
    rank = largest.shape[1]
    square = [
        StateTensor(largest.name, name, (rank, rank), dtype, 1)
        for name, dtype in (("A A^T", "fp32"), ("inverse of A A^T", "fp32"), ("inverse cast to bf16", "bf16"))
    ]
    halves = [
        StateTensor(largest.name, name, largest.shape, "bf16", 1)
        for name in ("gradient cast to bf16", "projected gradient in bf16")
    ]
    wide = [
        StateTensor(largest.name, name, largest.shape, largest.dtype, 1)
        for name in ("projected gradient", "denominator")
    ]
    note = "the pseudo-inverse of each module's A A^T in the LoRA-FA optimizer: its workspace"
    return OptimizerCost(_moments(trained), (*square, *halves, *wide), (note,))


def lora_pro(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """LoRA-Pro, with moments of the adjusted gradients."""
    steps = lora_pro_step.step_of_adapters(*lora_pro_step.paired(trained))
    return OptimizerCost(_moments(trained), (), (lora_pro_step.NOTE,), steps=steps)


def lora_pro_full(trained: Sequence[Held], run: RunSpec) -> OptimizerCost:
    """LoRA-Pro, with moments of each weight's equivalent gradient, in the dtype that the weight was loaded in."""
    pairs, others = lora_pro_step.paired(trained)
    states = tuple(
        StateTensor(pair.b, name, pair.wide, run.dtype, pair.count)
        for pair in pairs
        for name in ("exp_avg", "exp_avg_sq")
    )
    steps = lora_pro_step.step_of_weights(pairs, others, run.dtype)
    return OptimizerCost((*states, *_moments(others)), (), (lora_pro_step.NOTE,), steps=steps)


def _largest(trained: Sequence[Held], names: Sequence[str]) -> tuple[StateTensor, ...]:
    if not trained:
        return ()
    parameter: Parameter = max((h.parameter for h in trained), key=lambda p: size_of(p.shape, p.dtype)[0])
    return tuple(StateTensor(parameter.name, name, parameter.shape, parameter.dtype, 1) for name in names)


def with_importances(cost: OptimizerCost, trained: Sequence[Held]) -> OptimizerCost:
    """Add what PEFT's RankAllocator keeps of each number of A, B and E, and makes anew after the optimizer's step.

    Parameter after parameter: at the most three tensors of its size, each beside the one that it takes the place of.
    """
    matrices = [h for h in trained if "lora_" in h.parameter.name]
    kept = _moments(matrices, ("ipt", "exp_avg_ipt", "exp_avg_unc"))
    made = _largest(matrices, ("smoothed importance", "smoothed uncertainty", "new importance"))
    temporaries = max(cost.temporaries, made, key=_bytes)
    return replace(cost, states=(*cost.states, *kept), temporaries=temporaries)


_RULES: dict[str, Rule] = {
    "adamw": adamw, "adamw-fused": adamw_fused, "adamw-8bit": adamw_8bit, "paged-adamw": paged_adamw,
    "paged-adamw-8bit": paged_adamw_8bit, "sgd": sgd, "adafactor": adafactor, "lorafa": lorafa,
    "lorafa-peft": lorafa_peft, "lora-pro": lora_pro, "lora-pro-full": lora_pro_full,
}  # fmt: skip


def optimizer_cost(run: RunSpec, trained: Sequence[Held]) -> OptimizerCost:
    """Return what the optimizer of a run costs for the trained parameters.

    Raises:
        UnsupportedError: an optimizer of the contract that this engine does not model.
    """
    cost = _cost_of(run, trained)
    if not run.clip:
        return cost
    return replace(cost, temporaries=max(cost.temporaries, clipping(trained), key=_bytes))


def clipping(trained: Sequence[Held]) -> tuple[StateTensor, ...]:
    """torch.nn.utils.clip_grad_norm_, foreach: a norm for each gradient, all of them in one tensor, and its norm."""
    norms = tuple(StateTensor(h.parameter.name, "norm", (), h.parameter.dtype, h.count) for h in trained)
    dtypes = {norm.dtype for norm in norms}
    dtype = "fp32" if len(dtypes) > 1 else norms[0].dtype
    number = sum(norm.count for norm in norms)
    return (*norms, StateTensor("", "norms", (number,), dtype, 1), StateTensor("", "total norm", (), dtype, 1))


def _cost_of(run: RunSpec, trained: Sequence[Held]) -> OptimizerCost:
    name = run.resolved_optimizer
    if run.method.name == "lora-plus" and name == "adamw":
        return lora_plus(trained, run)
    if name not in _RULES:
        known = ", ".join(_RULES)
        raise UnsupportedError(f"the analytic engine does not model the optimizer {name} (it does: {known})")
    cost = _RULES[name](trained, run)
    return with_importances(cost, trained) if run.method.name == "adalora" else cost
