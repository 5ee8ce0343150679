"""What a model asks of its data, answered where the answer is known without data.

A model that is run on meta tensors can ask for values: whether all of the attention mask is set, how long the longest
sequence is, which positions are global. Meta tensors have none. But much of what is asked does not depend on weights or
on the ids of tokens: masks of ones, positions that are counted, labels that are all zero. How such a tensor came about
is noted, storage by storage, and done once more on the CPU when a value is really asked for. What depends on anything
else has no answer, and a step that asks for it is refused.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lorafa_prof.errors import SequenceTooLongError
from lorafa_prof.workload.naming import tensors_in

aten = torch.ops.aten

#: Bytes of the largest tensor that is computed for an answer, and of the largest result that is kept.
LARGEST, KEPT = 2**30, 2**20
#: Rows that are looked up at once, of which the highest is still looked for.
MOST_LOOK_UPS = 2**22
#: Elements of a tensor on the host that is taken for a constant.
SMALL = 1024
#: Operators that look at the shape and dtype of their first argument, and not at its content.
_LIKE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
#: Operators that leave their output as they find it.
_UNSET = ("empty", "new_empty", "resize")


class NotKnownError(Exception):
    """A value depends on weights or on the ids of tokens."""


class Content:
    """What a storage holds, computed when it is asked for.

    Args:
        dtype: of its elements.
        size: how many there are.
        compute: returns them, as a tensor of one dimension on the CPU.
    """

    def __init__(self, dtype: torch.dtype, size: int, compute: Callable[[], torch.Tensor]) -> None:
        self.dtype, self.size = dtype, size
        self._compute = compute
        self._kept: torch.Tensor | None = None

    @property
    def is_tokens(self) -> bool:
        """Whether these are ids of tokens, of which no more is known than which ids there are not."""
        return False

    def elements(self) -> torch.Tensor:
        """Return the elements.

        Raises:
            NotKnownError: too many of them, or they depend on what is not known.
        """
        nbytes = self.size * self.dtype.itemsize
        if nbytes > LARGEST:
            raise NotKnownError
        if self._kept is not None:
            return self._kept
        found = self._compute()
        if nbytes <= KEPT:
            self._kept = found
        return found


class Tokens(Content):
    """The ids of the batch's tokens: any but the ids that are left out, since no sequence is padded."""

    def __init__(self, dtype: torch.dtype, size: int, never: frozenset[int]) -> None:
        super().__init__(dtype, size, self._refuse)
        self.never = never

    @property
    def is_tokens(self) -> bool:
        """Yes."""
        return True

    def _refuse(self) -> torch.Tensor:
        raise NotKnownError


@dataclass(frozen=True, slots=True)
class Traits:
    """What matters of an operator here."""

    asks_value: bool
    """It returns what it finds in its data: `.item()`, `torch.equal`."""
    shapes_of_values: bool
    """How much it returns depends on its data: `nonzero`."""
    writes: bool
    """It writes over an argument."""
    repeatable: bool
    """It gives the same each time: no random numbers, nothing unset."""


@functools.cache
def traits(func: Any) -> Traits:
    """Return them; kept, for tags and schemas are slow to ask for."""
    tags = func.tags
    return Traits(
        asks_value=torch.Tag.data_dependent_output in tags,
        shapes_of_values=torch.Tag.dynamic_output_shape in tags,
        writes=func._schema.is_mutable,
        repeatable=torch.Tag.nondeterministic_seeded not in tags and not func._opname.startswith(_UNSET),
    )


@dataclass(frozen=True)
class Operand:
    """A tensor as an argument: a view of what a storage held at that time."""

    content: Content
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def tensor(self) -> torch.Tensor:
        """Return it on the CPU; what is written into it is written into what is kept."""
        return self.content.elements().as_strided(self.shape, self.strides, self.offset)


@dataclass
class KnownValues:
    """Contents of storages on meta, as far as they are known."""

    pad_ids: frozenset[int] = frozenset()
    """Ids that stand for padding."""
    _contents: dict[int, Content] = field(default_factory=dict)
    _lives: dict[int, _Life] = field(default_factory=dict)

    # -- what is known ------------------------------------------------------------------------------------------------

    def state(self, tensor: torch.Tensor, values: Callable[[], torch.Tensor]) -> None:
        """Say what a contiguous tensor holds: `values` returns the same shape and dtype on the CPU."""
        self._keep(tensor, Content(tensor.dtype, tensor.numel(), lambda: values().reshape(-1)))

    def state_tokens(self, tensor: torch.Tensor) -> None:
        """Say that a tensor holds ids of tokens, none of which stands for padding."""
        self._keep(tensor, Tokens(tensor.dtype, tensor.numel(), self.pad_ids))

    def saw(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Note how an operator's outputs come about, or that what it has written over is no longer known."""
        if traits(func).writes:
            self._overwritten(func, _written(func, args, kwargs), args, kwargs)
            return
        if not traits(func).repeatable:
            return
        tensors = [tensor for tensor in tensors_in(out) if self._is_new(tensor)]
        if not tensors:
            return
        content = self._compared_to_padding(func, args, tensors[0])
        if content is not None:
            self._keep(tensors[0], content)
            return
        call = self._call(func, args, kwargs)
        if call is None:
            return
        for number, tensor in enumerate(tensors_in(out)):
            if self._is_new(tensor):
                self._keep(tensor, _output(call, number, tensor))

    def value(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what an operator returns, computed on the CPU.

        Raises:
            NotKnownError: it depends on what is not known.
        """
        call = self._call(func, args, kwargs)
        if call is None:
            raise NotKnownError
        with _disable_current_modes():
            try:
                return call()
            except (RuntimeError, IndexError, TypeError, ValueError):  # what a kernel of the CPU refuses
                raise NotKnownError from None

    # -- how --------------------------------------------------------------------------------------------------------

    def _call(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """Return what does a call on the CPU, or None where an argument is not known."""
        try:
            first = [_of_its_kind(args[0])] if func._opname in _LIKE else [self._noted(value) for value in args[:1]]
            noted = [*first, *(self._noted(value) for value in args[1:])], self._noted(dict(kwargs))
        except NotKnownError:
            return None

        def call() -> Any:
            return func(*_on_cpu(noted[0]), **_on_cpu(noted[1]))

        return call

    def _noted(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._operand(value)
        if isinstance(value, dict):
            return {key: self._noted(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._noted(inner) for inner in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def _operand(self, tensor: torch.Tensor) -> Operand:
        if not tensor.is_meta:
            if tensor.numel() > SMALL:
                raise NotKnownError
            copy = tensor.detach().clone().reshape(-1)
            tensor, content = copy.reshape(tensor.shape), Content(copy.dtype, copy.numel(), lambda: copy)
        else:
            found = self._contents.get(tensor.untyped_storage()._cdata)
            if found is None or found.dtype != tensor.dtype:
                raise NotKnownError
            content = found
        if content.is_tokens:
            raise NotKnownError
        return Operand(content, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))

    def _compared_to_padding(self, func: Any, args: Any, out: torch.Tensor) -> Content | None:
        """Return the outcome of looking for padding among tokens: there is none, nor is there any negative id."""
        if func not in _COMPARISONS or not isinstance(args[1], int):
            return None
        content = self._contents.get(args[0].untyped_storage()._cdata)
        if not isinstance(content, Tokens) or not (args[1] in content.never or args[1] < 0):
            return None
        answer, size = _COMPARISONS[func], out.numel()
        return Content(torch.bool, size, lambda: torch.full((size,), answer))

    def _overwritten(self, func: Any, written: list[torch.Tensor], args: Any, kwargs: Mapping[str, Any]) -> None:
        keys = [tensor.untyped_storage()._cdata for tensor in written]
        before = [self._contents.get(key) for key in keys]
        if not any(before):
            return
        call = self._write(func, args, kwargs) if len(written) == 1 and traits(func).repeatable else None
        for key, content in zip(keys, before, strict=True):
            if call is None or content is None or content.is_tokens:
                self._forget(key)
            else:
                self._contents[key] = Content(content.dtype, content.size, call)

    def _write(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Callable[[], torch.Tensor] | None:
        """Return what does a call that writes over its first argument, and gives what the whole storage then holds."""
        if not isinstance(args[0], torch.Tensor):
            return None
        try:
            target, rest = self._operand(args[0]), (self._noted(list(args[1:])), self._noted(dict(kwargs)))
        except NotKnownError:
            return None

        def call() -> torch.Tensor:
            elements = target.content.elements().clone()
            func(
                elements.as_strided(target.shape, target.strides, target.offset), *_on_cpu(rest[0]), **_on_cpu(rest[1])
            )
            return elements

        return call

    def _is_new(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()
        return tensor.is_meta and storage.nbytes() > 0 and storage._cdata not in self._contents

    def _keep(self, tensor: torch.Tensor, content: Content) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        life = _Life(storage, self._die)
        life.key = key
        self._contents[key], self._lives[key] = content, life

    def _die(self, life: _Life) -> None:
        if self._lives.get(life.key) is life:
            self._forget(life.key)

    def _forget(self, key: int) -> None:
        self._contents.pop(key, None)
        self._lives.pop(key, None)


class _Life(weakref.ref[Any]):
    """A weak reference to a storage that knows by which key it is kept."""

    __slots__ = ("key",)
    key: int


#: Comparisons of tokens with an id that none of them has, and their answer.
_COMPARISONS = {aten.eq.Scalar: False, aten.ne.Scalar: True}


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return what an operator writes over."""
    arguments = func._schema.arguments
    values = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
    return [
        tensor
        for argument, value in zip(arguments, values, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors_in(value)
    ]


def on_meta(value: Any) -> Any:
    """Return an operator's result with meta tensors in the place of those on the CPU."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return type(value)(map(on_meta, value)) if isinstance(value, (list, tuple)) else value


def copies_to_host(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operator brings a meta tensor to the CPU, as `.tolist()` does."""
    if func is not aten._to_copy.default or not args[0].is_meta:
        return False
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Operand):
        return value.tensor()
    if isinstance(value, dict):
        return {key: _on_cpu(inner) for key, inner in value.items()}
    return [_on_cpu(inner) for inner in value] if isinstance(value, list) else value


def _output(call: Callable[[], Any], number: int, tensor: torch.Tensor) -> Content:
    """Return the content of the storage of an operator's output."""
    shape, strides, offset, dtype = tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype
    size = tensor.untyped_storage().nbytes() // dtype.itemsize

    def elements() -> torch.Tensor:
        found = list(tensors_in(call()))[number]
        whole = torch.zeros(size, dtype=dtype)
        whole.as_strided(shape, strides, offset).copy_(found)
        return whole

    return Content(dtype, size, elements)


def _of_its_kind(tensor: torch.Tensor) -> Operand:
    """Return a tensor of which no more than shape and dtype matters."""
    dtype = tensor.dtype  # the tensor itself must not be held
    size = tensor.untyped_storage().nbytes() // dtype.itemsize
    content = Content(dtype, size, lambda: torch.zeros(size, dtype=dtype))
    return Operand(content, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))


class Watching(TorchDispatchMode):
    """Notes contents while a model is built: its tables of positions and masks are made then."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.known.saw(func, args, kwargs, out)
        return out


#: Operators that read rows by their numbers.
_LOOK_UPS = (aten.embedding.default, aten.index_select.default, aten.gather.default)


def refuse_positions_beyond(known: KnownValues, func: Any, args: Any, module: str) -> None:
    """Refuse to look up a row that a table does not have, which meta tensors do not notice.

    Raises:
        SequenceTooLongError: a position (or whatever is looked up) that is known, and beyond the table.
    """
    if func not in _LOOK_UPS:
        return
    table, dimension, index = (args[0], 0, args[1]) if func is aten.embedding.default else args[:3]
    if index.numel() > MOST_LOOK_UPS:
        return
    try:
        highest = known.value(aten.max.default, (index,), {})
    except NotKnownError:
        return
    rows = table.shape[dimension]
    if highest >= rows:
        raise SequenceTooLongError(
            f"the sequence is too long for this model: {module or 'a table'} has {rows} rows, and row "
            f"{int(highest)} is looked up (counted from 0); shorten --seq",
            beyond=int(highest) - (rows - 1),
        )
