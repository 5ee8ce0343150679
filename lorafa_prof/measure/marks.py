"""Tells a tracer which module is at work: in the forward, in a recomputation, and node by node in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lorafa_prof.measure.trace import RECOMPUTE, Tell
from lorafa_prof.workload.modules import ModulePaths


class ModuleMarks(ModulePaths):
    """While entered as a context, calls `tell(phase, module)` at every change of phase or module.

    A hook on each node of the graph tells of its turn in the backward.

    Args:
        model: its modules get their names from it.
        tell: is called with the phase, and the path of the innermost module.
    """

    def __init__(self, model: torch.nn.Module, tell: Tell) -> None:
        super().__init__(model)
        self._tell = tell
        self._phase = "forward"
        self._node = ""

    def __enter__(self) -> ModuleMarks:
        super().__enter__()
        return self

    def enter_phase(self, phase: str) -> None:
        """Say that a phase of the step begins."""
        self._phase, self._node = phase, ""
        self.changed(stopped=True)

    def changed(self, *, stopped: bool = False) -> None:
        """Tell of the module at work."""
        module = self.stack[-1] if self.stack else self._node
        # Between the modules of a segment, too, gradients are enabled; in the backward's own formulas they are not.
        # An exception that has just left the outermost module leaves them enabled for a moment.
        recomputing = self.stack or (torch.is_grad_enabled() and not stopped)
        self._tell(RECOMPUTE if self._phase == "backward" and recomputing else self._phase, module)

    def labelled(self, node: Any, path: str) -> None:
        """Give the node a hook."""
        node.register_prehook(self._turn_of(path))

    def _turn_of(self, path: str) -> Callable[[Any], None]:
        def turn(_gradients: Any) -> None:
            if self._node != path:
                self._node = path
                self.changed()

        return turn
