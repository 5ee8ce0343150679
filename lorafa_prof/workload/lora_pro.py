"""LoRA-Pro: AdamW on gradients of A and B that are adjusted to step as full fine-tuning would (arXiv 2407.18242).

For one adapted weight W + s B A, with A (r, m), B (k, r), s the scaling and g (k, m) the gradient of W, LoRA's own
gradients are s B^T g and s g A^T. Steps along any g_A, g_B move the weight along the equivalent gradient

    s B g_A + s g_B A                                                                                   (1)

Those that bring (1) nearest to g, in Frobenius norm, are known without g. With + the (pseudo-)inverse,

    g_A = (B^T B)+ (s B^T g) / s^2 + X A
    g_B = (I - B (B^T B)+ B^T) (s g A^T) (A A^T)+ / s^2 - B X                                           (2)

for any X (r, r), which cancels in (1). The X that keeps both nearest to LoRA's gradients solves the Sylvester equation

    B^T B X + X A A^T = -(B^T B)+ (s B^T g) A^T / s^2                                                   (3)

B begins as 0, where B^T B has no inverse: its pseudo-inverse is 0, so that g_A and X are, and B alone moves, along
g_B = (s g A^T) (A A^T)+ / s^2. Both Gram matrices are symmetric: their eigenvectors turn (3) into a division, and give
the pseudo-inverses too. The projection in (2) is applied factor by factor, so that no (k, k) matrix is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from peft.tuners.lora import LoraLayer

from lorafa_prof.errors import UnsupportedError

Moments = Literal["adapters", "weights"]
"""Of what Adam's moments are kept: of the adjusted gradients, or of the equivalent gradient of each weight."""


@dataclass(frozen=True, kw_only=True)
class AdapterPair:
    """The two matrices of one adapted weight."""

    a: torch.nn.Parameter
    """(r, m)"""
    b: torch.nn.Parameter
    """(k, r)"""
    scaling: float


def adapter_pairs(model: torch.nn.Module) -> Iterator[AdapterPair]:
    """Yield the trained pairs of PEFT's LoRA layers.

    Raises:
        UnsupportedError: an adapter that is no pair of matrices for one weight, as those over fused experts.
    """
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        halves: Any = layer
        for name in layer.active_adapters:
            a, b = halves.lora_A[name].weight, halves.lora_B[name].weight
            if a.dim() != 2 or a.shape[0] != halves.r[name]:
                raise UnsupportedError(f"LoRA-Pro's optimizer knows adapters of a single matrix, not that of {path}")
            yield AdapterPair(a=a, b=b, scaling=float(halves.scaling[name]))


class LoraPro(torch.optim.Optimizer):
    """AdamW with LoRA-Pro's gradients; parameters that belong to no pair are stepped as by AdamW.

    With the moments of "adapters", Adam runs on the adjusted gradients, and its states have the adapters' sizes. With
    those of "weights" it runs on the equivalent gradient (1): two states (k, m) a pair, kept with B. The direction that
    Adam makes of it takes the place of g in (2) and (3).

    Each pair is a parameter group of its own, with its "scaling".

    Args:
        pairs: the adapters.
        others: further parameters.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled, of all parameters.
        moments: see above.
        moments_dtype: dtype of the moments of weights; None: that of the adapters.
    """

    def __init__(
        self,
        pairs: Iterable[AdapterPair],
        others: Iterable[torch.nn.Parameter] = (),
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        moments: Moments = "adapters",
        moments_dtype: torch.dtype | None = None,
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": [pair.a, pair.b], "scaling": pair.scaling} for pair in pairs]
        rest = list(others)
        if rest:
            groups.append({"params": rest, "scaling": None})
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "moments": moments, "moments_dtype": moments_dtype})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = group["params"]
            if group["scaling"] is None:
                for parameter in parameters:
                    if parameter.grad is not None:
                        self._adam(parameter, parameter.grad, group)
            elif all(parameter.grad is not None for parameter in parameters):
                along = self._along_adapters if group["moments"] == "adapters" else self._along_weight
                along(parameters, group)
        return loss

    def _along_adapters(self, pair: Sequence[torch.nn.Parameter], group: Mapping[str, Any]) -> None:
        a, b, grad_a, grad_b = (_widened(t) for t in (*pair, *_gradients(pair)))
        adjusted = adjusted_gradients(a, b, grad_a, grad_b, group["scaling"])
        del a, b, grad_a, grad_b
        for parameter, gradient in zip(pair, adjusted, strict=True):
            self._adam(parameter, gradient.to(parameter.dtype), group)

    def _along_weight(self, pair: Sequence[torch.nn.Parameter], group: Mapping[str, Any]) -> None:
        a, b = (_widened(parameter) for parameter in pair)
        direction = self._direction_of_weight(pair, a, b, group)  # (k, m)
        scaling = group["scaling"]
        along_a = (b.T @ direction).mul_(scaling)
        along_b = (direction @ a.T).mul_(scaling)
        del direction
        adjusted = adjusted_gradients(a, b, along_a, along_b, scaling)
        for parameter, gradient in zip(pair, adjusted, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(gradient.to(parameter.dtype), alpha=-group["lr"])

    def _direction_of_weight(
        self, pair: Sequence[torch.nn.Parameter], a: torch.Tensor, b: torch.Tensor, group: Mapping[str, Any]
    ) -> torch.Tensor:
        """Return what Adam makes of the equivalent gradient: (k, m), in the dtype of `a` and `b`."""
        shape = torch.Size((b.shape[0], a.shape[1]))
        moments = self._moments(pair[1], shape, group["moments_dtype"] or pair[1].dtype)
        grad_a, grad_b = (_widened(gradient) for gradient in _gradients(pair))
        gradient = equivalent_gradient(a, b, grad_a, grad_b, group["scaling"]).to(moments.first.dtype)
        del grad_a, grad_b
        _update(moments, gradient, group)
        del gradient
        return _denominator(moments, group).reciprocal_().mul_(moments.first).div_(_bias(moments, group)).to(a.dtype)

    def _adam(self, parameter: torch.nn.Parameter, gradient: torch.Tensor, group: Mapping[str, Any]) -> None:
        """Step one parameter along a gradient as AdamW does."""
        moments = self._moments(parameter, parameter.shape, parameter.dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        _update(moments, gradient, group)
        rate = group["lr"] / _bias(moments, group)
        parameter.addcdiv_(moments.first, _denominator(moments, group), value=-rate)

    def _moments(self, parameter: torch.nn.Parameter, shape: torch.Size, dtype: torch.dtype) -> _Moments:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)  # on the host
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros(shape, dtype=dtype, device=parameter.device)
        return _Moments(state["exp_avg"], state["exp_avg_sq"], state["step"])


class _Moments(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor
    step: torch.Tensor


def _update(moments: _Moments, gradient: torch.Tensor, group: Mapping[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    moments.step.add_(1)
    moments.first.lerp_(gradient, 1 - beta1)
    moments.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)


def _bias(moments: _Moments, group: Mapping[str, Any]) -> float:
    return 1 - float(group["betas"][0] ** float(moments.step))


def _denominator(moments: _Moments, group: Mapping[str, Any]) -> torch.Tensor:
    bias = 1 - float(group["betas"][1] ** float(moments.step))
    denominator: torch.Tensor = moments.second.sqrt().div_(bias**0.5).add_(group["eps"])
    return denominator


def _gradients(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32 at least, in which there are eigenvalues."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# -- one pair --------------------------------------------------------------------------------------------------------


def adjusted_gradients(
    a: torch.Tensor, b: torch.Tensor, grad_a: torch.Tensor, grad_b: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return g_A (r, m) and g_B (k, r) of equations (2) with the X of (3).

    Args:
        a: A, (r, m), in fp32 or fp64 like all others.
        b: B, (k, r).
        grad_a: LoRA's gradient s B^T g, (r, m).
        grad_b: LoRA's gradient s g A^T, (k, r).
        scaling: s.
    """
    adjusted = _Adjustment(a, b, scaling)
    g_a, g_b = adjusted.apart(grad_a, grad_b)
    x = adjusted.sylvester(g_a @ a.T)
    return g_a.addmm_(x, a), g_b.addmm_(b, x, alpha=-1)


def equivalent_gradient(
    a: torch.Tensor, b: torch.Tensor, grad_a: torch.Tensor, grad_b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return (1) for the g_A and g_B of (2), whatever X: (k, m). The arguments are `adjusted_gradients`'."""
    g_a, g_b = _Adjustment(a, b, scaling).apart(grad_a, grad_b)
    return (b @ g_a).addmm_(g_b, a).mul_(scaling)


class _Adjustment:
    """The Gram matrices of a pair, by their eigenvalues and eigenvectors."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        self._b, self._scaling = b, scaling
        self._values_a, self._vectors_a = torch.linalg.eigh(a @ a.T)
        self._values_b, self._vectors_b = torch.linalg.eigh(b.T @ b)

    def apart(self, grad_a: torch.Tensor, grad_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return g_A and g_B of (2) for X = 0."""
        b, square = self._b, self._scaling**2
        inverse_b = _inverse(self._values_b, self._vectors_b)
        g_a = (inverse_b @ grad_a).div_(square)
        g_b = (grad_b @ _inverse(self._values_a, self._vectors_a)).div_(square)
        return g_a, g_b.addmm_(b, inverse_b @ (b.T @ g_b), alpha=-1)

    def sylvester(self, right: torch.Tensor) -> torch.Tensor:
        """Return the X of B^T B X + X A A^T = -right, (r, r)."""
        sums = self._values_b[:, None] + self._values_a
        turned = self._vectors_b.T @ right @ self._vectors_a
        x: torch.Tensor = self._vectors_b @ turned.mul_(_reciprocal(sums)).neg_() @ self._vectors_a.T
        return x


def _inverse(values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the pseudo-inverse of a symmetric matrix (r, r) of which no eigenvalue is meant to be negative."""
    return (vectors * _reciprocal(values)) @ vectors.T


def _reciprocal(values: torch.Tensor) -> torch.Tensor:
    """Return one over each value, 0 for those that rounding alone could have made beside the largest."""
    smallest = values.amax() * (values.shape[-1] * torch.finfo(values.dtype).eps)
    return values.reciprocal().masked_fill_(values <= smallest, 0.0)
