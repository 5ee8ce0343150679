"""(A A^T)^-1 / s^2, which turns the gradient of B into that of Theorem 4.1 (arXiv 2308.03303), by one Cholesky.

With g = dL/dW the gradient of B is g_B = s g A^T, and of all changes of B the one whose update of W comes nearest to g
is g_B (A A^T)^-1 / s^2. Theorem A.1 is the same for LoRA-FB: (B^T B)^-1 g_A / s^2. The factor is made in float64, once
for each frozen matrix, whatever its dtype.

A singular Gram matrix is an error, not regularised: along rows of A that depend on each other no gradient is defined,
and PEFT's pseudo-inverse of A A^T + 1e-8 I multiplies what noise there is by 1e8. Whoever wants that can have it:
`damping` is added to the diagonal, and nothing is refused then but what Cholesky cannot factorise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lorafa_prof.errors import BadInputError
from lorafa_prof.lorafa.pairs import OTHER, Pair, Side

#: sin^2 of the angle between a row and the span of those before it, beneath which fp32 has nothing left of it.
_DEPENDENT = 1e-12


def corrections(pairs: Sequence[Pair], trains: Side, damping: float) -> torch.Tensor:
    """Return the corrections (n, r, r) of n pairs of equal rank, in float64, on the pairs' device.

    Args:
        pairs: whose frozen matrices are meant.
        trains: the side that is trained.
        damping: added to the diagonal of each Gram matrix.

    Raises:
        BadInputError: a frozen matrix that does not have full rank; the module is named.
    """
    grams = torch.stack([gram(pair, OTHER[trains]) for pair in pairs])
    if damping:
        grams.diagonal(dim1=-2, dim2=-1).add_(damping)
    factors, info = torch.linalg.cholesky_ex(grams)
    if not grams.is_meta:
        _check(pairs, OTHER[trains], grams, factors, info, damping)
    scalings = torch.tensor([pair.scaling for pair in pairs], dtype=torch.float64, device=grams.device)
    return torch.cholesky_inverse(factors) / scalings.square()[:, None, None]


def gram(pair: Pair, frozen: Side) -> torch.Tensor:
    """Return A A^T or B^T B (r, r) in float64; on the host where the device has none."""
    weight: Any = pair.weight(frozen).detach()
    whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    whole = (whole.cpu() if whole.device.type == "mps" else whole).double()
    rows: torch.Tensor = whole if frozen == "A" else whole.T
    return rows @ rows.T


def _check(
    pairs: Sequence[Pair], frozen: Side, grams: torch.Tensor, factors: torch.Tensor, info: torch.Tensor, damping: float
) -> None:
    # L_ii^2 / G_ii is the sin^2: what is left of a row's length once the rows before it are taken out
    left = factors.diagonal(dim1=-2, dim2=-1).square() / grams.diagonal(dim1=-2, dim2=-1)
    sound = (info == 0) & (bool(damping) | (left > _DEPENDENT).all(-1))
    for pair, is_sound in zip(pairs, sound.tolist(), strict=True):
        if is_sound:
            continue
        shape = tuple(pair.weight(frozen).shape)
        product, rows = ("A A^T", "rows") if frozen == "A" else ("B^T B", "columns")
        raise BadInputError(
            f"{pair.path}: the frozen {frozen} {shape} has no full rank, so that {product} has no inverse: some of its "
            f"{rows} are zero or depend on the others. Initialise {frozen} anew, take a rank up to the layer's width, "
            "or give damping=1e-8 to go on as PEFT's optimizer does"
        )
