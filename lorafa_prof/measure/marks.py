"""Tells a tracer which module is at work: in the forward, in a recomputation, and node by node in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.nn.modules import module as nn_module

from lorafa_prof.measure.trace import RECOMPUTE, Tell
from lorafa_prof.workload.naming import LOSS, loss_functions, short_name, tensors_in


class ModuleMarks:
    """While entered as a context, calls `tell(phase, module)` at every change of phase or module.

    Hooks of modules tell of the forward. They also label the nodes of the graph that the module made, and give each a
    hook that tells of its turn in the backward; neither holds on to a tensor.

    Args:
        model: its modules get their names from it.
        tell: is called with the phase, and the path of the innermost module.
    """

    def __init__(self, model: torch.nn.Module, tell: Tell) -> None:
        self._names = {id(module): short_name(name) for name, module in model.named_modules()}
        self._tell = tell
        self._stack: list[str] = []
        self._phase = "forward"
        self._node = ""
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleMarks:
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

    def enter_phase(self, phase: str) -> None:
        """Say that a phase of the step begins."""
        self._phase, self._node = phase, ""
        self._now(stopped=True)

    def _now(self, *, stopped: bool = False) -> None:
        """Tell of the module at work; `stopped`: an exception has just left the outermost one."""
        module = self._stack[-1] if self._stack else self._node
        # Between the modules of a segment, too, gradients are enabled; in the backward's own formulas they are not.
        recomputing = self._stack or (torch.is_grad_enabled() and not stopped)
        self._tell(RECOMPUTE if self._phase == "backward" and recomputing else self._phase, module)

    def _push(self, path: str) -> None:
        self._stack.append(path)
        self._now()

    def _pop(self, *, stopped: bool = False) -> str:
        path = self._stack.pop()
        self._now(stopped=stopped)
        return path

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        path = self._names.get(id(module))
        if path is None:  # made within forward, as RoBERTa and T5 make their CrossEntropyLoss
            path = LOSS if isinstance(module, torch.nn.modules.loss._Loss) else type(module).__name__
        self._label(args, self._stack[-1] if self._stack else "")
        self._push(path)

    def _leave(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        # Checkpointing ends its recomputation by an exception when it has all that it needs: there is no output then.
        self._label(output, self._pop(stopped=output is None))

    def _as_module(self, loss_function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._label((args, kwargs), self._stack[-1] if self._stack else "")
            self._push(LOSS)
            out = None
            try:
                out = loss_function(*args, **kwargs)
            finally:
                self._label(out, self._pop())
            return out

        return wrapped

    def _label(self, output: Any, path: str) -> None:
        # What comes in was labelled when the module was entered, and inner modules leave first: what is still
        # unlabelled behind an output was made by the module itself.
        waiting: list[Any] = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if "lorafa_prof" not in node.metadata:
                node.metadata["lorafa_prof"] = path
                node.register_prehook(self._turn_of(path))
                waiting += [inner for inner, _ in node.next_functions if inner is not None]

    def _turn_of(self, path: str) -> Callable[[Any], None]:
        def turn(_gradients: Any) -> None:
            if self._node != path:
                self._node = path
                self._now()

        return turn
