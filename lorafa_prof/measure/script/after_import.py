"""Calls back when a module has been imported: right away if it is there, and never if it is not wanted."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


def when_imported(name: str, call: Callable[[], None]) -> Callable[[], None]:
    """Call `call` when the module of that name has been executed for the first time.

    Returns:
        What ends the wait.
    """
    if name in sys.modules:
        call()
        return lambda: None
    finder = _Finder(name, call)
    sys.meta_path.insert(0, finder)
    return finder.leave


class _Finder(MetaPathFinder):
    """Finds nothing itself: it lets the others find the module, and sees it executed."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self._name, self._call = name, call
        self._asking = False

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != self._name or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            self._see_executed(spec.loader)
        return spec

    def _see_executed(self, loader: Any) -> None:
        # On the loader itself and only until it has run: whoever asks the module for its loader finds its own.
        # Another that waits for the same module may have done so already; it comes next.
        execute, before = loader.exec_module, vars(loader).get("exec_module")

        def exec_module(module: ModuleType) -> None:
            if before is None:
                del loader.exec_module
            else:
                loader.exec_module = before
            execute(module)
            self.leave()
            self._call()

        loader.exec_module = exec_module
