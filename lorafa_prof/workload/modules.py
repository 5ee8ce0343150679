"""Which module is executing: in the forward, in a recomputation, and (through the graph's nodes) in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.nn.modules import module as nn_module

from lorafa_prof.workload.naming import LOSS, loss_functions, short_name, tensors_in

#: Where a node of the graph keeps the path of the module that made it.
_MADE_BY = "lorafa_prof.module"


class ModulePaths:
    """Keeps the path of the module that is executing, while it is entered as a context.

    Hooks of modules follow the forward, and label the nodes of the graph with the module that made them; they hold on
    to no tensor. A child class that has to be told, rather than to ask, overrides `changed` and `labelled`.

    Args:
        model: its modules get their names from it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.stack: list[str] = []
        """Paths of the modules whose forward is executing, outermost first; the loss is one of them."""
        self.names = {id(module): short_name(name) for name, module in model.named_modules()}
        """Path of each module, by its `id`."""
        self._handles: list[Any] = []

    def __enter__(self) -> ModulePaths:
        table = loss_functions()
        self._patch = mock.patch.dict(table, {name: self._as_module(function) for name, function in table.items()})
        self._patch.start()
        self._handles += [
            nn_module.register_module_forward_pre_hook(self._enter),
            # also when forward raises: non-reentrant checkpointing stops its recomputation by an exception
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._patch.stop()

    @property
    def current(self) -> str:
        """Path of the innermost module that executes, or whose nodes the backward pass executes."""
        if self.stack:
            return self.stack[-1]
        node: Any = torch._C._current_autograd_node()
        return str(node.metadata.get(_MADE_BY, "")) if node is not None else ""

    @property
    def recomputing(self) -> bool:
        """Whether the backward pass is running a forward once more, as checkpointing does.

        No formula of autograd runs inside a module, nor with gradients enabled. What runs with them and without a node
        is the caller of backward.
        """
        if torch._C._current_autograd_node() is None:
            return False
        return bool(self.stack) or torch.is_grad_enabled()

    def rename(self, model: torch.nn.Module) -> None:
        """Take names from a model that has been wrapped since."""
        self.names.update((id(module), short_name(name)) for name, module in model.named_modules())

    def changed(self, *, stopped: bool = False) -> None:
        """Hear that a module was entered or left; `stopped`: by an exception, so that it has no output."""

    def labelled(self, node: Any, path: str) -> None:
        """Hear of a node of the graph that the module of that path made."""

    def _push(self, path: str) -> None:
        self.stack.append(path)
        self.changed()

    def _pop(self, *, stopped: bool) -> str:
        path = self.stack.pop()
        self.changed(stopped=stopped)
        return path

    def _as_module(self, loss_function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._label((args, kwargs), self.current)
            self._push(LOSS)
            out = None
            try:
                out = loss_function(*args, **kwargs)
            finally:
                self._label(out, self._pop(stopped=out is None))
            return out

        return wrapped

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        path = self.names.get(id(module))
        if path is None:  # made within forward, as RoBERTa and T5 make their CrossEntropyLoss
            path = LOSS if isinstance(module, torch.nn.modules.loss._Loss) else type(module).__name__
        self._label(args, self.current)
        self._push(path)

    def _leave(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        # Checkpointing ends its recomputation by an exception when it has all that it needs: there is no output then.
        self._label(output, self._pop(stopped=output is None))

    def _label(self, output: Any, path: str) -> None:
        # What comes in was labelled when the module was entered, and inner modules leave first: what is still
        # unlabelled behind an output was made by the module itself.
        waiting: list[Any] = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            metadata = node.metadata
            if _MADE_BY not in metadata:
                metadata[_MADE_BY] = path
                self.labelled(node, path)
                waiting += [inner for inner, _ in node.next_functions if inner is not None]
