"""What torch tells of a training loop without being asked for anything: steps, backwards, calls of the model.

Each place is touched once and given back as it was. Nothing is put on a module or an optimizer itself, which scripts
copy and pickle. Within the model's forward nothing is in the way: of a call only the outermost is seen.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Listener(Protocol):
    """Is told what a training loop does."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer begins its step."""
        ...

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has ended its step."""
        ...

    def enter_model(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """A module is called from outside of any other."""
        ...

    def enter_backward(self) -> None:
        """A backward begins."""
        ...

    def leave_backward(self) -> None:
        """It is over."""
        ...

    def failed(self, error: Exception) -> None:
        """One of the functions above has raised: a script must not end by what looks at it."""
        ...


class Watch:
    """While entered as a context, tells a listener what the training loop does.

    Args:
        listener: is told.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._stack = contextlib.ExitStack()
        self._calls = contextlib.ExitStack()
        self._depth = 0
        self._is_on = True
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
        for register, tell in (
            (register_optimizer_step_pre_hook, self._listener.before_step),
            (register_optimizer_step_post_hook, self._listener.after_step),
        ):
            self._handles.append(register(self._hook(tell)))
        self._stack.enter_context(_replaced(torch.autograd, "backward", self._backward(torch.autograd.backward)))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        while self._handles:
            self._handles.pop().remove()

    def stop(self) -> None:
        """Tell nothing any more. Hooks of optimizers stay for now: torch may be going through them."""
        self._is_on = False
        self._stack.close()
        self._calls.close()
        self._calls = contextlib.ExitStack()

    def see_calls_of_any(self) -> None:
        """Tell of every module that is called from outside of any other."""
        self._see_calls_of(torch.nn.Module, lambda module: True)

    def see_calls_of(self, root: torch.nn.Module) -> None:
        """Tell of calls of this module alone."""
        self._see_calls_of(type(root), lambda module: module is root)

    def _see_calls_of(self, kind: type[torch.nn.Module], is_wanted: Callable[[torch.nn.Module], bool]) -> None:
        self._calls.close()
        original = kind.__call__

        @functools.wraps(original)
        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            # Who else watches may keep this in place of what it was, and call it when its own time is over.
            if not (self._is_on and self._calls is calls and is_wanted(module)):
                return original(module, *args, **kwargs)
            self._guarded(self._listener.enter_model, module, args, kwargs)
            # Modules within are called as ever, which matters to compilers too.
            again = self._calls is calls and kind is torch.nn.Module
            if again:
                calls.close()
            try:
                return original(module, *args, **kwargs)
            finally:
                if again and self._calls is calls:
                    calls.enter_context(_replaced(kind, "__call__", call))

        self._calls = calls = contextlib.ExitStack()
        calls.enter_context(_replaced(kind, "__call__", call))

    def _hook(self, tell: Callable[[torch.optim.Optimizer], None]) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self._guarded(tell, optimizer)

        return hook

    def _backward(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> None:
            if self._depth or not self._is_on:  # checkpointing runs one within another
                original(*args, **kwargs)
                return
            self._guarded(self._listener.enter_backward)
            self._depth += 1
            try:
                original(*args, **kwargs)
            finally:
                self._depth -= 1
                self._guarded(self._listener.leave_backward)

        return backward

    def _guarded(self, tell: Callable[..., None], *args: Any) -> None:
        if not self._is_on:
            return
        try:
            tell(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the script's
            self._listener.failed(error)


class _replaced(contextlib.AbstractContextManager[None]):  # noqa: N801 - used as a function
    """While entered, an attribute has another value; one that was inherited is inherited again."""

    _entered: ClassVar[list[_replaced]] = []

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value

    def __enter__(self) -> None:
        self._own = vars(self._owner).get(self._name)
        setattr(self._owner, self._name, self._value)
        self._entered.append(self)

    def __exit__(self, *_: object) -> None:
        self._entered.remove(self)
        if vars(self._owner).get(self._name) is not self._value:
            # Somebody else has put something over it, which is left alone. Another watch gives back what was before.
            for other in self._entered:
                if (other._owner, other._name) == (self._owner, self._name) and other._own is self._value:
                    other._own = self._own
            return
        if self._own is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)
