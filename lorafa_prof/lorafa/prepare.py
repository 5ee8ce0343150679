"""One line that makes LoRA-FA (or LoRA-FB) of a PEFT model with LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from lorafa_prof.errors import BadInputError
from lorafa_prof.layers import RankBeyondError
from lorafa_prof.lorafa.layers import Dropout, OneSided, Products, make_one_sided
from lorafa_prof.lorafa.pairs import OTHER, Side, adapter_pairs

Model = TypeVar("Model", bound=torch.nn.Module)


def prepare(
    model: Model,
    *,
    trains: Side = "B",
    adapters: Sequence[str] | None = None,
    dropout: Dropout = "recompute",
    products: Products = "input",
) -> Model:
    """Freeze one side of a PEFT model's LoRA adapters for good, and let their forward keep the r-wide projection alone.

    The model is changed in place; its adapters save, load, merge and unload as PEFT's. Call it before DDP,
    `fully_shard` or `torch.compile`, and before the optimizer is made.

    LoRA-FB cannot train over the zeros that PEFT makes of B. Where B is all zeros, A and B change roles: B becomes what
    kaiming_uniform_ draws for A, A becomes zeros, and the adapter's product is 0 as before.

    Args:
        model: a PEFT model.
        trains: "B" is LoRA-FA, "A" is LoRA-FB.
        adapters: names of adapters; None: the active ones.
        dropout: whether the mask of the adapters' dropout is drawn again in the backward ("recompute") or kept, at a
            byte an element ("mask").
        products: dtype of the adapters' products where there is no autocast: that of the layer's "input", as the base's
            own product, or the "adapter"'s, as PEFT has it.

    Returns:
        The model.

    Raises:
        BadInputError: no LoRA adapters, or a rank for which A A^T (B^T B) can have no inverse.
        UnsupportedError: a layer or an adapter of another kind; the module is named.
    """
    _check_choice("trains", trains, ("A", "B"))
    _check_choice("dropout", dropout, ("recompute", "mask"))
    _check_choice("products", products, ("input", "adapter"))
    pairs = adapter_pairs(model, adapters)
    for pair in pairs:
        frozen = pair.weight(OTHER[trains])
        rank = pair.layer.r[pair.adapter]
        width = frozen.shape[1 if trains == "B" else 0]
        if rank > width:
            raise RankBeyondError(pair.path, rank, width, f"LoRA-F{OTHER[trains]}")
    for pair in pairs:
        how = OneSided(path=pair.path, trains=trains, dropout=dropout, products=products)
        make_one_sided(pair, how)
        if trains == "A":
            _change_roles(pair.weight("A"), pair.weight("B"))
    return model


@torch.no_grad()
def _change_roles(a: torch.nn.Parameter, b: torch.nn.Parameter) -> None:
    if b.is_meta or b.count_nonzero():
        return
    torch.nn.init.kaiming_uniform_(b, a=5**0.5)
    a.zero_()


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInputError(f"lorafa.prepare: {name}={value!r} is not known; it is one of {', '.join(known)}")
