"""What PyTorch raises of meta tensors, told as a refusal: what meta tensors lack is told from what fails anyway."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lorafa_prof.errors import BadInputError, LorafaProfError, MissingComponentError, UnsupportedError
from lorafa_prof.search import largest
from lorafa_prof.simulate.refusals import Failure, explained
from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of
from tests.support.architectures import tiny_run_of

META = torch.empty(4, 4, device="meta")
LENGTHS = torch.empty(3, dtype=torch.long, device="meta")


def told(error: Callable[[], object], run: RunSpec, kind: type[LorafaProfError] = UnsupportedError) -> str:
    """The refusal that an error becomes."""
    with pytest.raises(kind) as caught, explained(Failure(run)):
        error()
    return str(caught.value)


@pytest.fixture(scope="module")
def run() -> RunSpec:
    return run_of("llama", "lora")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda: META.sum().item(), "its code needs data"),
        (META.numpy, "its code needs data"),
        (META.tolist, "its code needs data"),
        (lambda: torch.nonzero(META), "torch.nonzero needs data"),
        (lambda: torch.repeat_interleave(LENGTHS), "its code needs data"),
        (lambda: torch.masked_select(META, META > 0), "aten::masked_select has no kernel for meta tensors"),
        (lambda: torch.linalg.lstsq(META, META), "aten::linalg_lstsq.out has no kernel for meta tensors"),
    ],
)
def test_what_meta_tensors_lack(run: RunSpec, step: Callable[[], object], said: str) -> None:
    """The step cannot be simulated, which says nothing of a real one: closed forms do without, where they can."""
    text = told(step, run)
    assert f": its step cannot be simulated, since {said}" in text
    assert text.endswith("; --engine analytic does without")
    assert told(step, tiny_run_of("opt", "lora")).endswith("`lorafa-prof measure` takes real steps")


def test_an_operator_of_another_package(run: RunSpec) -> None:
    """It is named as the package has it."""
    library = torch.library.Library("lorafa_prof_test", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: x + x, "CPU")
    text = told(lambda: torch.ops.lorafa_prof_test.double(META), run)
    assert "since lorafa_prof_test::double has no kernel for meta tensors" in text


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.mm(x, torch.empty(3, 4, device=x.device)),
        lambda x: x + torch.empty(3, device=x.device),
        lambda x: x.view(3, 5),
    ],
)
def test_what_fails_anyway(run: RunSpec, step: Callable[[torch.Tensor], object]) -> None:
    """Real tensors fail as well, so that no engine is named as a way out; PyTorch's reason is."""
    with pytest.raises(RuntimeError):
        step(torch.zeros(4, 4))
    text = told(lambda: step(META), run)
    assert ": its step cannot be run as asked: the libraries raised RuntimeError: " in text
    assert text.endswith("(`lorafa-prof measure` tells whether a real step fails as well)")
    assert "analytic" not in text


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.bmm(x[None], x[None].bfloat16()),
        lambda x: torch.zeros_like(x).scatter(0, torch.zeros(1, 4, dtype=torch.long, device=x.device), x.bfloat16()),
        lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None].bfloat16(), x[None, None]),
    ],
)
def test_a_matter_of_dtypes(run: RunSpec, step: Callable[[torch.Tensor], object]) -> None:
    """In fp32 everything is of one dtype; a run that is in fp32 already is not told so."""
    with pytest.raises(RuntimeError):
        step(torch.zeros(4, 4))
    assert told(lambda: step(META), run).endswith("(a matter of dtypes: --dtype fp32 may run)")
    assert "--dtype fp32" not in told(lambda: step(META), run.replace(dtype="fp32"))


def test_a_long_reason_is_shortened_and_still_read_whole(run: RunSpec) -> None:
    """What decides may stand anywhere in it."""

    def long(end: str) -> Callable[[], object]:
        def fail() -> None:
            raise RuntimeError("much ado " * 50 + end)

        return fail

    assert "its step cannot be simulated" in told(long("Cannot copy out of meta tensor; no data!"), run)
    text = told(long("expected scalar type Half"), run)
    assert "much ado ... (a matter" in text
    assert text.endswith("--dtype fp32 may run)")
    assert len(text) < 500


def test_other_errors_are_what_they_are(run: RunSpec) -> None:
    """A package that is missing has its exit code, a refusal of ours stays one, and so does a mistake of ours."""

    def importing() -> None:
        raise ModuleNotFoundError("No module named 'mamba_ssm'")

    def refusing() -> None:
        raise BadInputError("as it is")

    assert "No module named 'mamba_ssm'" in told(importing, run, MissingComponentError)
    assert told(refusing, run, BadInputError) == "as it is"
    with pytest.raises(TypeError, match="not callable"), explained(Failure(run)):
        largest(None, most=1)  # type: ignore[arg-type]
