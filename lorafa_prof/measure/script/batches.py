"""What goes into a model's forward: tensors with their names, tokens, and how large its logits can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lorafa_prof.ledger import Category
from lorafa_prof.measure.names import Name, Names, address_of, logits_sizes
from lorafa_prof.workload.naming import tensors_in

#: Inputs of transformers' models with a row of tokens for each sequence.
_TOKENS = ("input_ids", "labels", "decoder_input_ids")


def tokens_of(args: Any, kwargs: Mapping[str, Any]) -> int | None:
    """Return the tokens in `input_ids`, padding included; None where there are none."""
    ids = _input_ids(args, kwargs)
    return None if ids is None else int(ids.numel())


def _input_ids(args: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    ids = kwargs.get("input_ids")
    if ids is None and args:
        ids = args[0]
        if isinstance(ids, Mapping):
            ids = ids.get("input_ids")
    is_ids = isinstance(ids, torch.Tensor) and ids.dim() == 2 and not ids.is_floating_point()
    return ids if is_ids else None


def batch_names(args: Any, kwargs: Mapping[str, Any], device_type: str) -> Names:
    """Return the names of the tensors of a batch that are on the device."""
    return {
        address_of(tensor): Name.of(f"batch.{key}", tensor, Category.ACTIVATIONS)
        for key, tensor in _named(args, kwargs)
        if tensor.device.type == device_type
    }


def _named(args: Any, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    inputs = {**{str(number): value for number, value in enumerate(args)}, **kwargs}
    for key, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _named((), {str(inner): each for inner, each in value.items()})
        else:
            for tensor in tensors_in(value):
                if not isinstance(tensor, torch.nn.Parameter):
                    yield key, tensor


def sizes_of_logits(args: Any, kwargs: Mapping[str, Any], vocabulary: int | None) -> frozenset[int]:
    """Return how many bytes the logits of a batch can have; none where nothing tells of a vocabulary."""
    if vocabulary is None:
        return frozenset()
    tensors = [kwargs.get(name) for name in _TOKENS] + [_input_ids(args, kwargs)]
    shapes = {tuple(t.shape) for t in tensors if isinstance(t, torch.Tensor) and t.dim() == 2}
    return logits_sizes([(bs, seq) for bs, seq in shapes], vocabulary)
