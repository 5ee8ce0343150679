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
_OPERATOR = re.compile(r"aten[:.]+\w+(?:\.\w+)?|torch\.\w+(?=\(\) raises unimplemented)")
#: What torch says when a step wants values of meta tensors.
_WANTS_DATA = re.compile(
    r"no data|cannot be called on meta tensors|raises unimplemented|data.dependent|dynamic.*shape|attempted to run "
    r"this operator with Meta tensors",
    re.IGNORECASE,
)
#: What torch says of operands whose dtypes do not go together.
_DTYPES = re.compile(r"scalar type|same dtype|Unsupported dtype")
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
        raise UnsupportedError(
            f"{run.model.name}: {_reason(error, operator, module, run.dtype)}; {way_out(run)}"
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Return whether an error was raised by this package's own code, and not by what it called."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).resolve().is_relative_to(_OURS)


def _reason(error: Exception, operator: str | None, module: str | None, dtype: str) -> str:
    text = _one_line(error)
    named = _OPERATOR.search(text)
    what = named.group() if named else operator
    where = f" in {module}" if module else ""
    if what is not None and isinstance(error, (NotImplementedError, RuntimeError)) and _WANTS_DATA.search(text):
        return f"its step cannot be simulated, since {what}{where} needs data that meta tensors do not have"
    at = f"{what or 'the code'}{where}" if what or where else "the libraries"
    if _DTYPES.search(text) and dtype != "fp32":
        text += f" (the model does not run in {dtype}; --dtype fp32 may)"
    return f"its step cannot be run as asked: {at} raised {type(error).__name__}: {text}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


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
