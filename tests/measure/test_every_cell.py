"""A real step on the CPU of each method on each architecture, and with each option, against the simulated CPU.

The measurement hears its bytes from the CPU's allocator, through torch's profiler; the simulation makes its own on meta
tensors, without a real tensor. No row of their comparison may miss by a byte: parts of the peak, phases, saved
activations, gradients, parameters. What the measurement refuses the simulation refuses too.

`tests/measure/test_measure.py` does the same for four architectures, and more with what it has measured. By default
each of the others is here with one method; `make test-slow` has them all (some minutes of one core).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lorafa_prof.compare import compare
from lorafa_prof.errors import LorafaProfError
from lorafa_prof.measure.harness import Options, measure
from lorafa_prof.results import PART_FIELDS, Measurement, Prediction
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.specs import METHODS, PAGED, RunSpec
from lorafa_prof.workload.versions import release
from tests.measure.test_measure import FAMILIES, METHODS as METHODS_THERE, THREADS
from tests.support.profiled import kernels_of_known_size
from tests.support.supported import ARCHITECTURES, TECHNIQUES, architecture_run, technique_name, technique_run

pytestmark = [
    pytest.mark.skipif(release("transformers") < (5,), reason="older releases have not all of the architectures"),
    pytest.mark.skipif(release("peft") < (0, 21), reason="older releases have not all of the methods"),
]


def cells() -> list[Any]:
    """Every method on every architecture that `test_measure` does not have; of an architecture one is quick."""
    made = []
    for i, architecture in enumerate(ARCHITECTURES):
        for j, method in enumerate(METHODS):
            if architecture in FAMILIES and method in METHODS_THERE:
                continue
            quick = architecture not in FAMILIES and j == i % len(METHODS)
            marks = () if quick else pytest.mark.slow
            made.append(pytest.param(architecture, method, id=f"{architecture}-{method}", marks=marks))
    return made


def options() -> list[Any]:
    """Every value of every option; those that most people have never tried on a CPU are quick."""
    quick = ("loss", "accumulation", "clip", "optimizer", "checkpointing", "keep")
    return [
        pytest.param(option, value, id=technique_name(option, value), marks=() if option in quick else pytest.mark.slow)
        for option, value in TECHNIQUES
        if not _is_elsewhere(option, value)
    ]


def _is_elsewhere(option: str, value: Any) -> bool:
    """Several GPUs: `test_distributed` starts their processes. int8: what bitsandbytes allocates is not simulated.

    Paged states: the CPU has none, and `test_optimizers` sees to it that both say so.
    """
    return (option == "shard" and value != "none") or value in ("int8", *PAGED)


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with kernels_of_known_size(THREADS):
        yield


def on_the_cpu(architecture: str, method: str) -> RunSpec:
    """T5's bias of positions has another kernel with sdpa on the CPU."""
    return architecture_run(architecture, method, **({"attn": "eager"} if architecture == "t5" else {}))


def measured(run: RunSpec) -> Measurement | str:
    """What was observed, or why it is refused."""
    try:
        return measure(run, Options(device="cpu", steps=1, warmup=1))
    except LorafaProfError as error:
        return str(error)


def predicted(run: RunSpec) -> Prediction | str:
    """What is predicted, or why it is refused."""
    try:
        return predict_on_cpu(run, THREADS)
    except LorafaProfError as error:
        return str(error)


def check(run: RunSpec) -> None:
    """No row of the comparison misses, and the run keeps its promises; or both refuse for one reason."""
    seen, said = measured(run), predicted(run)
    if isinstance(seen, str) or isinstance(said, str):
        assert seen == said
        return
    errors = {row.name: row.error(0) for row in compare(seen, [said]).rows if row.error(0) is not None}
    assert set(errors) > set(PART_FIELDS)
    assert {name: error for name, error in errors.items() if error} == {}
    assert [promise.detail for promise in seen.promises if not promise.kept] == []


@pytest.mark.parametrize(("architecture", "method"), cells())
def test_every_method_on_every_architecture(architecture: str, method: str) -> None:
    """Three sequences of 22 tokens, everything else as it is by default."""
    check(on_the_cpu(architecture, method))


@pytest.mark.parametrize(("option", "value"), options())
def test_every_option(option: str, value: Any) -> None:
    """On a tiny Llama, by a method that has a use for it."""
    check(technique_run(option, value))
