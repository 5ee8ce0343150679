"""The product s B A of a one-sided adapter, as one node of autograd that keeps what its backward needs and no more.

With x (N, m), A (r, m), B (k, r), dropout D and the base layer's result y (N, k):

    p = D(x) A^T                (N, r)
    out = y + s p B^T           (N, k)

and with g = dL/dout

    dL/dB = s g^T p             needs p: all that LoRA-FA keeps
    dL/dA = s (g B)^T D(x)      needs x: LoRA-FB keeps it as it came, which is what others keep of it too, not a copy
    dL/dx = D(s (g B) A)        needs the mask of D: a byte an element, or its seed

The products run in one dtype, that of x or of autocast; A and B are cast to it in the forward and again in the
backward, so that no cast copy is kept. 1 / (1 - dropout) goes into s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable


class Options(NamedTuple):
    """What the product depends on beside its tensors."""

    scaling: float
    dtype: torch.dtype
    """Of the products."""
    dropout: float = 0.0
    seed: int | None = None
    """Of the mask; None: it is kept, and drawn from the default generator."""

    @property
    def factor(self) -> float:
        """The scaling of what is left of a dropout."""
        return self.scaling / (1 - self.dropout)


class _AddAdapter(torch.autograd.Function):
    """result (..., k), x (..., m), a (r, m), b (k, r) -> result + s D(x) a^T b^T."""

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, options: Options
    ) -> torch.Tensor:
        dtype = options.dtype
        _, needs_x, needs_a, needs_b, _ = ctx.needs_input_grad
        mask = _mask(x.reshape(-1, a.shape[1]), options)
        projected = _dropped(x, mask, dtype) @ a.to(dtype).t()
        keeps_mask = options.seed is None and (needs_x or needs_a)
        ctx.save_for_backward(
            projected if needs_b else None, x if needs_a else None, a if needs_x else None,
            b if needs_x or needs_a else None, mask if keeps_mask else None,
        )  # fmt: skip
        ctx.options, ctx.x_like = options, (x.shape, x.dtype, x.device)
        ctx.dtypes = (a.dtype, b.dtype)
        rows = result.reshape(-1, b.shape[0])
        if result.dtype == dtype:
            return torch.addmm(rows, projected, b.to(dtype).t(), alpha=options.factor).view(result.shape)
        return rows.add(projected @ b.to(dtype).t(), alpha=options.factor).to(result.dtype).view(result.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        options = ctx.options
        dtype = options.dtype
        projected, x, a, b, mask = ctx.saved_tensors
        _, needs_x, needs_a, needs_b, _ = ctx.needs_input_grad
        shape, x_dtype, device = ctx.x_like
        rows = grad.reshape(-1, grad.shape[-1]).to(dtype)
        grad_x = grad_a = grad_b = None
        if needs_b:
            grad_b = (rows.t() @ projected).to(ctx.dtypes[1]).mul_(options.factor)
        if needs_x or needs_a:
            if options.seed is not None:
                mask = _mask(torch.empty(0, device=device).expand(rows.shape[0], 0), options, shape[-1])
            back = (rows @ b.to(dtype)).mul_(options.factor)
            if needs_a:
                grad_a = (back.t() @ _dropped(x, mask, dtype)).to(ctx.dtypes[0])
            if needs_x:
                product = back @ a.to(dtype)
                product = product if mask is None else product.mul_(mask)
                grad_x = product.view(shape).to(x_dtype)
        return (grad if ctx.needs_input_grad[0] else None), grad_x, grad_a, grad_b, None


def _mask(rows: torch.Tensor, options: Options, width: int | None = None) -> torch.Tensor | None:
    """Return which of the elements (N, m) stay, or None where all do; the same again for the same seed."""
    if not options.dropout:
        return None
    shape = (rows.shape[0], rows.shape[1] if width is None else width)
    generator = None
    if options.seed is not None and not rows.is_meta:  # where nothing is drawn
        generator = torch.Generator(device=rows.device)
        generator.manual_seed(options.seed)
    mask = torch.empty(shape, dtype=torch.bool, device=rows.device)
    return mask.bernoulli_(1 - options.dropout, generator=generator)


def _dropped(x: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return x (N, m) without what is dropped, not yet scaled."""
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    return rows if mask is None else rows * mask


def add_adapter(
    result: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, options: Options
) -> torch.Tensor:
    """Return result + s D(x) A^T B^T, in the dtype of the result.

    Args:
        result: of the base layer (..., k).
        x: its input (..., m).
        a: A (r, m).
        b: B (k, r).
        options: scaling, dropout and dtype.
    """
    out: torch.Tensor = _AddAdapter.apply(result, x, a, b, options)  # type: ignore[no-untyped-call]  # torch's
    return out
