"""Runs a script, or a module, as Python itself would: its own arguments, its own `__main__`, its own end."""

from __future__ import annotations

import builtins
import contextlib
import copy
import importlib.machinery
import importlib.util
import io
import os
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafa_prof.errors import BadInputError

_OWN_FOLDER = os.path.join(os.path.dirname(__file__), "")
#: What a shell reports for a process that Ctrl-C has ended.
EXIT_INTERRUPTED = 130


_GIVEN: dict[str, Any] = {"__annotations__": {}, "__cached__": None}


@dataclass(frozen=True)
class Ending:
    """How a script came to its end."""

    exit_code: int
    """What the process is to exit with."""
    error: BaseException | None = None
    """What it has raised; None also where it has called `sys.exit`."""


@dataclass(frozen=True)
class Program:
    """What to run, found and compiled; nothing of it has run yet."""

    argv: tuple[str, ...]
    folder: str | None
    """What sys.path begins with; None where the program sees to that."""
    run: Callable[[], None]
    code: types.CodeType | None
    """Its top level, where tracebacks begin."""


def find_program(target: str, args: Sequence[str], *, as_module: bool) -> Program:
    """Find and compile what is to be run.

    Args:
        target: a file (or a folder or zip file with a `__main__.py`), or a module's name.
        args: its arguments.
        as_module: as `python -m` does it.

    Raises:
        BadInputError: there is no such thing.
    """
    return _find_module(target, args) if as_module else _find_file(target, args)


def _find_file(target: str, args: Sequence[str]) -> Program:
    path = Path(target)
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise BadInputError(f"{target!r} is a folder without a __main__.py")
    if not path.exists():
        hint = f"; lorafa-prof run -m {target} runs a module" if not target.endswith(".py") else ""
        raise BadInputError(f"there is no script {target!r}{hint}")
    if path.is_dir() or path.suffix in (".zip", ".pyz", ".pyc"):
        return Program((target, *args), None, lambda: _run_path(target), None)
    file = os.path.join(os.getcwd(), target)
    try:
        with io.open_code(file) as stream:
            source = stream.read()
    except OSError as error:
        raise BadInputError(f"cannot read {target!r}: {error.strerror or error}") from error

    def run() -> None:
        # Compiled here, so that a syntax error is the script's own.
        loader = importlib.machinery.SourceFileLoader("__main__", file)
        _execute(compile(source, file, "exec", dont_inherit=True), {"__file__": file, "__loader__": loader})

    return Program((target, *args), os.path.dirname(os.path.realpath(path)), run, None)


def _run_path(target: str) -> None:
    runpy.run_path(target, run_name="__main__")


def _find_module(name: str, args: Sequence[str]) -> Program:
    sys.path.insert(0, os.getcwd())
    try:
        spec = _spec_of(name)
    finally:
        sys.path.pop(0)
    loader: Any = spec.loader
    code = loader.get_code(spec.name)
    if code is None:
        raise BadInputError(f"the module {name!r} has no Python code to run")
    main = {
        "__file__": spec.origin, "__cached__": spec.cached, "__loader__": loader, "__package__": spec.parent,
        "__spec__": spec,
    }  # fmt: skip
    return Program((spec.origin or name, *args), os.getcwd(), lambda: _execute(code, main), code)


def _spec_of(name: str) -> Any:
    if name.endswith(".py") and os.path.isfile(name):  # to look for a module within it would run it
        raise BadInputError(f"there is no module {name!r} to run; to run a file: lorafa-prof run {name}")
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
            if spec is None:
                raise BadInputError(f"{name!r} is a package without a __main__, and cannot be run")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise BadInputError(f"there is no module {name!r} to run: {error}") from error
    if spec is None or spec.loader is None:
        raise BadInputError(f"there is no module {name!r} to run")
    return spec


def _execute(code: types.CodeType, names: dict[str, Any]) -> None:
    main = types.ModuleType("__main__")
    # what this release of Python gives to a main module beside these
    given = {name: value for name, value in _GIVEN.items() if name in vars(sys.modules["__main__"])}
    main.__dict__.update({"__builtins__": builtins, **copy.deepcopy(given), **names})
    # It stays the main module: threads and functions that are called when the interpreter ends still need it.
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102 - the user's own program


def run_program(program: Program) -> Ending:
    """Run it to its end; what it raises is reported as Python would, on stderr."""
    sys.argv[:] = program.argv
    if program.folder is not None and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = program.folder
    try:
        program.run()
    except SystemExit as stop:
        return Ending(_exit_code(stop.code))
    except KeyboardInterrupt as error:
        _report(error)
        return Ending(EXIT_INTERRUPTED, error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the script's
        _report(error)
        return Ending(1, error)
    return Ending(0)


def _exit_code(code: object) -> int:
    """Return what Python makes of the argument of sys.exit; what is no number is printed."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"{code}\n")
    return 1


def _report(error: BaseException) -> None:
    """Print the traceback, from the script's own frames on, by the hook that the script may have set."""
    told: BaseException | None = error
    while told is not None:
        _leave_out_ours(told)
        told = told.__cause__ or told.__context__
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    sys.excepthook(type(error), error, error.__traceback__)


def _leave_out_ours(error: BaseException) -> None:
    """Take our own frames out of a traceback, at its beginning and where we listen in between."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    error.__traceback__ = trace
    while trace is not None:
        while trace.tb_next is not None and _is_ours(trace.tb_next):
            trace.tb_next = trace.tb_next.tb_next
        trace = trace.tb_next


def _is_ours(trace: types.TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(_OWN_FOLDER) or file.endswith("<frozen runpy>") or file == runpy.__file__
