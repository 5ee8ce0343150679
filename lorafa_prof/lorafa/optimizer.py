"""AdamW on the gradients of Theorem 4.1, for PEFT models: LoRA-FA's optimizer, and LoRA-FB's.

The algorithm is the one that the paper's authors and PEFT publish (arXiv 2308.03303, appendix B), with t the step:

    G <- g_B (A A^T)^-1 / s^2
    m <- b1 m + (1 - b1) G,  v <- b2 v + (1 - b2) G^2                (of the shape of B)
    B <- B - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)
    B <- B - lr wd B

What differs is how it is computed. (A A^T)^-1 / s^2 is made once (`gram`) and again when A has changed. Modules of
equal shape go through one batched product, so many at a time that their B have `ROWS` rows together; on the CPU, where
a batch saves nothing, one by one while the product is in the cache. The rest is the kernel of PyTorch's fused AdamW,
which takes G as the gradient. The arithmetic is fp32 (float64 for float64 adapters): 16-bit adapters have a master copy
in fp32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorafa_prof.errors import BadInputError, UnsupportedError
from lorafa_prof.lorafa.gram import corrections
from lorafa_prof.lorafa.pairs import OTHER, Pair, Side, adapter_pairs

#: Rows of B that are stepped at a time, at least those of one module: 16 MiB of gradients at rank 64.
ROWS = 2**16
#: Devices that have the fused kernel in every torch since 2.4.
_FUSED = ("cpu", "cuda", "xpu")
#: A count of steps at which no bias is left to correct; the correction is in the learning rate.
_SETTLED = 1e9

Mark = tuple[int, int]
"""Storage and version of a tensor, which tell whether it has been written to."""


@dataclass(kw_only=True, eq=False)
class _Trained:
    """A parameter, and where it is half of a pair, its pair."""

    parameter: torch.nn.Parameter
    pair: Pair | None = None
    side: Side = "B"
    correction: torch.Tensor | None = None
    """(r, r), in the dtype of the arithmetic."""
    frozen_mark: Mark | None = None
    """The frozen matrix as the correction was made of it."""
    own_mark: Mark | None = None
    """A 16-bit parameter as the last step left it."""


@dataclass(kw_only=True, eq=False)
class _Batch:
    """Parameters that are stepped in one call, and their states, as local tensors."""

    trained: list[_Trained] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    """Parameters, or their master copies."""
    first: list[torch.Tensor] = field(default_factory=list)
    second: list[torch.Tensor] = field(default_factory=list)


class LoraFA(torch.optim.Optimizer):
    """AdamW whose gradients of B are corrected as Theorem 4.1 has it (of A as Theorem A.1, for LoRA-FB).

    Which side of an adapter is corrected follows from which is frozen. All other trained parameters of the model, such
    as `modules_to_save`, get AdamW alone. States are `step`, `exp_avg`, `exp_avg_sq` and, of 16-bit parameters,
    `master`.

    Args:
        model: a PEFT model with LoRA adapters, of each of which one side is frozen: see `prepare`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator, before the correction of the bias.
        weight_decay: decoupled, after the step.
        damping: added to the diagonal of A A^T; PEFT's optimizer has 1e-8. With 0 a singular A A^T is an error.
        fused: whether to use PyTorch's fused kernel; None: where the device has it.
        batched: whether modules of one shape share products; None: where launching kernels costs something.

    Raises:
        BadInputError: an adapter of which both sides train, or none; a frozen matrix without full rank; bad numbers.
        UnsupportedError: an adapter that is no pair of matrices, or trained A sharded by rows.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        damping: float = 0.0,
        fused: bool | None = None,
        batched: bool | None = None,
    ) -> None:
        positive = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "damping": damping}
        wrong = [f"{name}={value}" for name, value in positive.items() if not value >= 0.0]
        wrong += [f"betas={betas}"] if not all(0.0 <= beta < 1.0 for beta in betas) else []
        if wrong:
            raise BadInputError(f"LoraFA: {wrong[0]} is out of range; betas are in [0, 1), the others at least 0")
        self._damping, self.fused, self.batched = damping, fused, batched
        self._trained: dict[torch.Tensor, _Trained] = {}
        self._settled: dict[torch.device, torch.Tensor] = {}
        for pair in adapter_pairs(model):
            side = pair.trains()
            parameter = pair.weight(side)
            _refuse_sharded_rows(pair, side)
            self._trained[parameter] = _Trained(parameter=parameter, pair=pair, side=side)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        self.refactorise()

    def kept(self) -> Iterator[tuple[torch.Tensor, str, torch.Tensor]]:
        """Yield what is kept from step to step beside `state`, and made anew rather than saved.

        Yields:
            the parameter that it is for, what it is, and the tensor: of each pair the correction (r, r).
        """
        for parameter, each in self._trained.items():
            if each.correction is not None:
                yield parameter, "correction", each.correction
        for device, settled in self._settled.items():
            yield next(p for p in self._trained if p.device == device), "settled", settled

    def refactorise(self) -> None:
        """Make the corrections anew of all frozen matrices.

        `step` does so for those that have changed. What it cannot see is a write through `.data`.
        """
        self._correct([each for each in self._trained.values() if each.pair is not None])

    def _correct(self, stale: Sequence[_Trained]) -> None:
        for _, group in _grouped(stale, lambda each: (each.side, *_shape_key(_pair(each).weight(OTHER[each.side])))):
            pairs = [_pair(each) for each in group]
            made = corrections(pairs, group[0].side, self._damping)
            for each, correction in zip(group, made, strict=True):
                parameter = _local(each.parameter)
                each.correction = correction.to(device=parameter.device, dtype=_arithmetic(parameter.dtype))
                each.frozen_mark = _mark(_pair(each).weight(OTHER[each.side]))

    def _follow_frozen(self) -> None:
        """Make corrections anew where a frozen matrix was written to.

        Raises:
            BadInputError: one that is not frozen any more.
        """
        stale = []
        for each in self._trained.values():
            if each.pair is None:
                continue
            frozen = each.pair.weight(OTHER[each.side])
            if frozen.requires_grad:
                each.pair.trains()  # raises: both sides train
            if each.frozen_mark != _mark(frozen):
                stale.append(each)
        if stale:
            self._correct(stale)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are.

        Raises:
            BadInputError: a frozen matrix that is not frozen any more, or has lost its rank.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow_frozen()
        for group in self.param_groups:
            stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
            for (step, *_), batch in _grouped(stepped, self._advance):
                for chunk in self._chunks(batch):
                    self._update(self._batch(chunk), step, group)
        return loss

    def _advance(self, parameter: torch.nn.Parameter) -> tuple[Any, ...]:
        """Count a parameter's step; return it, with what those that are stepped together have in common."""
        state = self.state[parameter]
        if not state:
            dtype = _arithmetic(parameter.dtype)
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
        state["step"] += 1
        known = self._of(parameter)
        # parameters of no pair may differ in shape
        shape = (known.side, *_shape_key(parameter)) if known.pair else (None, parameter.device, parameter.dtype)
        return (int(state["step"]), *shape)

    def _of(self, parameter: torch.nn.Parameter) -> _Trained:
        return self._trained.setdefault(parameter, _Trained(parameter=parameter))

    def _chunks(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[Sequence[torch.nn.Parameter]]:
        """Yield parameters of one group by as many as are stepped in one call."""
        size, known = 1, self._of(parameters[0])
        if parameters[0].device.type != "cpu" if self.batched is None else self.batched:
            if known.pair is None:
                size = len(parameters)
            else:
                assert known.correction is not None, "made when the optimizer was"
                rows = _local(parameters[0]).numel() // known.correction.shape[0]
                size = max(1, ROWS // max(1, rows))
        for begin in range(0, len(parameters), size):
            yield parameters[begin : begin + size]

    def _batch(self, parameters: Sequence[torch.nn.Parameter]) -> _Batch:
        batch = _Batch()
        for parameter in parameters:
            state, known = self.state[parameter], self._of(parameter)
            batch.trained.append(known)
            batch.gradients.append(_local(parameter.grad))
            batch.values.append(_local(self._master(known)))
            batch.first.append(_local(state["exp_avg"]))
            batch.second.append(_local(state["exp_avg_sq"]))
        return batch

    def _master(self, known: _Trained) -> torch.Tensor:
        """Return what is stepped: the parameter, or its master copy, made anew if others have written to it."""
        parameter, state = known.parameter, self.state[known.parameter]
        if _arithmetic(parameter.dtype) == parameter.dtype:
            return parameter
        if "master" not in state:
            state["master"] = parameter.detach().to(_arithmetic(parameter.dtype))
        elif known.own_mark != _mark(parameter):
            state["master"].copy_(parameter)
        master: torch.Tensor = state["master"]
        return master

    def _update(self, batch: _Batch, step: int, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        unbiased = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        # decay comes after the step: (B - lr unbiased u) left = B left - rate u
        left = 1 - float(group["lr"]) * group["weight_decay"]
        rate = float(group["lr"]) * unbiased * left
        gradients = _projected(batch)
        device = batch.values[0].device
        if device.type in _FUSED if self.fused is None else self.fused:
            # the kernel decays by its own rate: rate within = 1 - left
            within = group["weight_decay"] / (unbiased * left) if left > 0 else 0.0
            if left <= 0:
                torch._foreach_mul_(batch.values, left)
            if device not in self._settled:
                self._settled[device] = torch.full((), _SETTLED, device=device)
            torch._fused_adamw_(
                batch.values, gradients, batch.first, batch.second, [], [self._settled[device]] * len(gradients),
                lr=rate, beta1=beta1, beta2=beta2, weight_decay=within, eps=group["eps"],
                amsgrad=False, maximize=False,
            )  # fmt: skip
        else:
            torch._foreach_lerp_(batch.first, gradients, 1 - beta1)
            torch._foreach_mul_(batch.second, beta2)
            torch._foreach_addcmul_(batch.second, gradients, gradients, 1 - beta2)
            denominators = torch._foreach_sqrt(batch.second)
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_mul_(batch.values, left)
            torch._foreach_addcdiv_(batch.values, batch.first, denominators, -rate)
        own = [_local(each.parameter) for each in batch.trained]
        if own[0].dtype != batch.values[0].dtype:
            torch._foreach_copy_(own, batch.values)
            for each in batch.trained:
                each.own_mark = _mark(each.parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the states of `state_dict()`, with their own dtypes: torch would cast them to the parameters'."""
        super().load_state_dict(state_dict)
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if name != "step" and isinstance(value, torch.Tensor):
                    self.state[parameter][name] = value.detach().clone().to(parameter.device)
            self._of(parameter).own_mark = _mark(parameter)


def _projected(batch: _Batch) -> list[torch.Tensor]:
    """Return the gradients that AdamW goes by, in the dtype of the arithmetic; corrected where they are a pair's."""
    dtype = batch.values[0].dtype
    known = batch.trained[0]
    if known.pair is None:
        return [gradient.to(dtype) for gradient in batch.gradients]
    made = [each.correction for each in batch.trained if each.correction is not None]
    if len(made) == 1:
        gradient = batch.gradients[0].to(dtype)
        return [gradient @ made[0] if known.side == "B" else made[0] @ gradient]
    stacked, matrices = torch.stack(batch.gradients).to(dtype), torch.stack(made)
    return list((stacked @ matrices if known.side == "B" else matrices @ stacked).unbind())


def _grouped(items: Sequence[Any], key: Callable[[Any], tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Return the items by their key, in order of the first of each."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def _shape_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (_local(tensor).shape, tensor.device, tensor.dtype)


def _pair(each: _Trained) -> Pair:
    assert each.pair is not None
    return each.pair


def _local(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a sharded tensor; the tensor itself where nothing is sharded."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def _mark(tensor: torch.Tensor) -> Mark:
    local = _local(tensor)
    return (0 if local.is_meta else local.data_ptr(), local._version)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _refuse_sharded_rows(pair: Pair, side: Side) -> None:
    """Refuse a trained A of which each rank has some rows: the correction mixes them."""
    parameter: Any = pair.weight(side)
    wrong = 0 if side == "A" else 1
    if any(getattr(placement, "dim", None) == wrong for placement in getattr(parameter, "placements", ())):
        raise UnsupportedError(
            f"{pair.path}: {side} is sharded along its rank, which the correction mixes; keep it whole "
            "(fully_shard with ignored_params), or shard it along its other dimension"
        )
