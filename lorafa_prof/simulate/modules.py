"""Which module is executing: in the forward, in a recomputation, and (through the graph's nodes) in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.nn.modules import module as nn_module

from lorafa_prof.workload.naming import LOSS, loss_functions, short_name, tensors_in


class ModulePaths:
    """Keeps the path of the module that is executing, while it is entered as a context."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.names = {id(module): short_name(name) for name, module in model.named_modules()}
        self.stack: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> ModulePaths:
        wrapped = {name: self._as_module(function) for name, function in loss_functions().items()}
        self._loss_patch = mock.patch.dict(loss_functions(), wrapped)
        self._loss_patch.start()
        self._handles += [
            nn_module.register_module_forward_pre_hook(self._enter),
            # also when forward raises: non-reentrant checkpointing stops its recomputation by an exception
            nn_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._loss_patch.stop()

    @property
    def current(self) -> str:
        """Path of the innermost module that executes, or whose nodes the backward pass executes."""
        if self.stack:
            return self.stack[-1]
        node: Any = torch._C._current_autograd_node()
        return str(node.metadata.get("module", "")) if node is not None else ""

    @property
    def recomputing(self) -> bool:
        """Whether the backward pass is running a forward once more, as checkpointing does.

        No formula of autograd runs inside a module, nor with gradients enabled. What runs with them and without a node
        is the caller of backward.
        """
        if torch._C._current_autograd_node() is None:
            return False
        return bool(self.stack) or torch.is_grad_enabled()

    def _as_module(self, loss_function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._label((args, kwargs), self.current)
            self.stack.append(LOSS)
            out = loss_function(*args, **kwargs)
            self._label(out, self.stack.pop())
            return out

        return wrapped

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        path = self.names.get(id(module))
        if path is None:  # made within forward, as RoBERTa and T5 make their CrossEntropyLoss
            path = LOSS if isinstance(module, torch.nn.modules.loss._Loss) else type(module).__name__
        self._label(args, self.current)
        self.stack.append(path)

    def _leave(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._label(output, self.stack.pop())

    def _label(self, output: Any, path: str) -> None:
        # What comes in was labelled when the module was entered, and inner modules leave first: what is still
        # unlabelled behind an output was made by the module itself.
        waiting: list[Any] = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            metadata = node.metadata
            if "module" not in metadata:
                metadata["module"] = path
                waiting += [inner for inner, _ in node.next_functions if inner is not None]
