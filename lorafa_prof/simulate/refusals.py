"""What goes wrong while a step is recorded, told as a refusal: which operator, in which module, and the way out."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from lorafa_prof.errors import LorafaProfError, MissingComponentError, UnsupportedError
from lorafa_prof.specs import ModelSpec, RunSpec
from lorafa_prof.workload.modules import ModulePaths

#: An operator as the errors of the dispatcher and of the meta functions name it.
_OPERATOR = re.compile(r"\w+::\w+(?:\.\w+)?(?=: attempted)|aten[:.]+\w+(?:\.\w+)?|torch\.\w+(?=\(\) raises)")
#: What torch says of an operator that nobody has told what its outputs look like.
_HAS_NO_KERNEL = re.compile(r"no fake impl or Meta kernel|from the 'Meta' backend")
#: What torch says where values of meta tensors are wanted, or shapes that depend on values.
_WANTS_DATA = re.compile(r"no data|meta tensor|meta device|raises unimplemented|data.dependent", re.IGNORECASE)
#: What torch says of operands whose dtypes do not go together, or that a kernel does not take.
_DTYPES = re.compile(r"scalar type|dtype", re.IGNORECASE)
#: Of errors that are shown.
_MOST_SIGNS = 300
_OURS = Path(__file__).resolve().parents[1]


class Failure:
    """Where the recording of a run is, for the case that it fails.

    Args:
        run: the configuration.
    """

    def __init__(self, run: RunSpec) -> None:
        self.run = run
        self.paths: ModulePaths | None = None
        """Names of the modules, once the model is built."""
        self.operator: tuple[BaseException, str, str] | None = None
        """The last error of an operator, with the operator's name and the module that ran it."""

    def note(self, error: BaseException, operator: str, module: str) -> None:
        """Note that an operator has raised an error."""
        self.operator = (error, operator, module)

    def place(self, error: BaseException) -> tuple[str | None, str | None]:
        """Return the operator (None: none has failed) and the module (None: not known) that an error comes from."""
        if self.operator is not None and self.operator[0] in _chain(error):
            return self.operator[1], self.operator[2] or None
        found = None
        for frame, _ in traceback.walk_tb(error.__traceback__):
            module = frame.f_locals.get("self")
            if self.paths is not None and isinstance(module, torch.nn.Module):
                found = self.paths.names.get(id(module)) or type(module).__name__
        return None, found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def explained(failure: Failure) -> Iterator[None]:
    """Turn what libraries raise while a step is built and run on meta into a refusal; a mistake of ours stays one.

    Raises:
        UnsupportedError: the step cannot be simulated, or the libraries refuse it.
        MissingComponentError: a package that the model needs is not installed.
    """
    run = failure.run
    try:
        yield
    except LorafaProfError:
        raise
    except ImportError as error:
        raise MissingComponentError(f"{run.model.name}: {_one_line(error)}") from error
    except Exception as error:
        operator, module = failure.place(error)
        if operator is None and _is_ours(error):
            raise
        raise UnsupportedError(f"{run.model.name}: {_reason(error, operator, module, run)}") from error


def _is_ours(error: BaseException) -> bool:
    """Return whether an error was raised by this package's own code, and not by what it called."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).resolve().is_relative_to(_OURS)


def _reason(error: Exception, operator: str | None, module: str | None, run: RunSpec) -> str:
    """Return what went wrong where, and the way out: of what meta tensors cannot do there is one without them.

    What else the libraries raise they would most likely raise of real tensors too, and no other engine helps.
    """
    whole = str(error)
    named = _OPERATOR.search(whole)
    what = named.group() if named else operator
    where = f" in {module}" if module else ""
    lacking = _lacking(error)
    if lacking:
        return f"its step cannot be simulated, since {what or 'its code'}{where} {lacking}; {way_out(run)}"
    at = f"{what or 'the code'}{where}" if what or where else "the libraries"
    said = f"its step cannot be run as asked: {at} raised {type(error).__name__}: {_one_line(error)}"
    if _DTYPES.search(whole) and run.dtype != "fp32":
        return f"{said} (a matter of dtypes: --dtype fp32 may run)"
    return f"{said} (`lorafa-prof measure` tells whether a real step fails as well)"


def _lacking(error: Exception) -> str:
    """Return what meta tensors lack for a step that raised an error; nothing where that is not the matter."""
    if not isinstance(error, (RuntimeError, TypeError)):
        return ""
    if _HAS_NO_KERNEL.search(str(error)):
        return "has no kernel for meta tensors"
    return "needs data that meta tensors do not have" if _WANTS_DATA.search(str(error)) else ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MOST_SIGNS else text[: _MOST_SIGNS - 3] + "..."


def way_out(run: RunSpec) -> str:
    """Return what there is to do about a step that cannot be simulated."""
    if isinstance(run.model, ModelSpec):
        return "--engine analytic does without"
    return "closed forms do not know this architecture either; `lorafa-prof measure` takes real steps"


#: What a model of which nothing is known may do on a card in place of what is simulated.
OTHER_KERNELS = (
    "kernels of other packages (mamba-ssm, flash-linear-attention, ...) that transformers takes on a card where they "
    "are installed: its own code is simulated"
)


def described(run: RunSpec) -> list[str]:
    """Return as what a model is built of which the catalog does not say it."""
    if isinstance(run.model, ModelSpec):
        return []
    whose = "transformers' own code" if run.model.code is None else f"the code in {run.model.code}"
    return [f"the model is a {run.model.built_as}, built by {whose}"]


def value_wanted(failure: Failure | None, operator: str, module: str) -> UnsupportedError:
    """Return the refusal of a step that asks for a value which depends on its data."""
    where = f" in {module}" if module else ""
    told = "" if failure is None else f"{failure.run.model.name}: "
    instead = "--engine analytic does without" if failure is None else way_out(failure.run)
    return UnsupportedError(
        f"{told}the model's forward asks for a value that depends on the data (aten.{operator}{where}), which a "
        f"simulated step does not have; {instead}"
    )
