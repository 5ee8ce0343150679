"""Which test holds which engine to other evidence, for which methods, architectures and options.

The tests are named here, with what each compares. What they cover is not: it is read from their own parametrisation, so
that a family that a test does not have shows as one that nobody compares.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any

import pytest

from lorafa_prof.specs import RunSpec
from tests.analytic.runs import run_of
from tests.support.configs import tiny_configs
from tests.support.supported import technique_run

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Tests of a file that compare what an engine says with something that the engine does not share."""

    letter: str
    engine: str
    says: str
    """What is compared with what; "" where the letter has said it."""
    file: str
    """Below tests/."""
    tests: Mapping[str, Mapping[str, Any]]
    """Names of the functions (Class.function of one in a class), and what each gives every run beside its parameters:
    family, method, options."""


PROOFS: tuple[Proof, ...] = (
    Proof(
        letter="P", engine="analytic", file="analytic/test_parameters.py",
        says="parameters, all and trained, `==` those of the real model with PEFT's adapters (no bytes)",
        tests={"TestFamilies.test_all_methods": NOTHING},
    ),
    Proof(
        letter="F", engine="analytic", file="analytic/test_flops.py",
        says="FLOPs of forward and backward, `==` those that PyTorch's counter finds in the real step (no bytes)",
        tests={"test_flops_are_those_of_the_counter": NOTHING},
    ),
    Proof(
        letter="S", engine="analytic", file="analytic/test_saved_activations.py",
        says="bytes that a forward saves for the backward, against saved-tensor hooks on the real model",
        tests={
            "TestOnTheCpu.test_every_family_and_method": NOTHING,
            "TestUnderCudasKernels.test_where_the_cpu_keeps_something_else": NOTHING,
            "TestUnderCudasKernels.test_sliding_window": NOTHING,
            "TestUnderCudasKernels.test_adapter_dropout": NOTHING,
            "TestUnderCudasKernels.test_quantized": NOTHING,
            "TestUnderCudasKernels.test_dora": {"method": "dora"},
        },
    ),
    Proof(
        letter="K", engine="analytic", file="analytic/test_peaks.py",
        says="peak allocated, against the live storages of the real step on meta tensors",
        tests={
            "test_every_family": {"optimizer": "adamw"},
            "test_every_method": {"family": "llama", "optimizer": "adamw"},
            "test_dora_s_matrices": {"method": "dora"},
            "test_every_optimizer": {"method": "full"},
        },
    ),
    Proof(
        letter="E", engine="analytic", file="analytic/test_experts.py",
        says="the peak of each phase of mixtures of experts, against the real step on meta tensors",
        tests={"test_every_phase": NOTHING, "test_variations": NOTHING},
    ),
    Proof(
        letter="A", engine="both", file="simulate/test_against_analytic.py",
        says="closed forms and simulation, which share no code on the way: every part of the peak, to the byte",
        tests={
            "test_tiny_models": NOTHING,
            "test_quantised_weights": NOTHING,
            "test_parts_of_checkpointed_layers": NOTHING,
            "test_the_rest_of_the_methods": NOTHING,
            "test_padded_batches": {"method": "lora", "padded": True},
            "test_windows_of_flash_attention": {"method": "lora", "attn": "flash"},
            "test_adalora": {"method": "adalora"},
            "test_prepared_weights": {"method": "qlora"},
            "test_the_step_of_lora_pro": {"method": "lora-pro"},
            "test_parts_of_selectively_checkpointed_layers": {"checkpointing": "selective"},
            "test_int8_weights": {"quant": "int8"},
        },
    ),
    Proof(
        letter="L", engine="both", file="simulate/test_adapted_layers.py",
        says="the same with adapters in some layers alone", tests={"test_tiny_models": NOTHING},
    ),
    Proof(
        letter="O", engine="both", file="simulate/test_optimizers.py",
        says="the same of Adafactor and 8-bit AdamW, whose step is the peak",
        tests={"test_states_and_temporaries": NOTHING},
    ),
    Proof(
        letter="H", engine="both", file="simulate/test_fused_loss.py", says="the same with head and loss in one",
        tests={"test_both_engines_agree": {"loss": "fused"}},
    ),
    Proof(
        letter="G", engine="both", file="simulate/test_accumulated_steps.py",
        says="the same of several micro-batches, and of clipped gradients",
        tests={"test_both_engines_agree": {"accumulation": 2}},
    ),
    Proof(
        letter="A", engine="both", file="simulate/test_lora_ga_in_closed_form.py", says="",
        tests={"test_every_phase": NOTHING, "test_every_architecture": NOTHING},
    ),
    Proof(
        letter="D", engine="both", file="simulate/test_sharded_against_analytic.py",
        says="the same of the first of several GPUs, and what it sends", tests={"test_tiny_models": NOTHING},
    ),
    Proof(
        letter="R", engine="simulate", file="simulate/test_real_cpu_step.py",
        says="every event of the simulated CPU, against the allocator's own reports of a real step there",
        tests={"test_every_event_is_the_allocator_s": NOTHING, "test_quantised_weights": NOTHING},
    ),
    Proof(
        letter="R", engine="simulate", file="simulate/test_selective_checkpointing.py", says="",
        tests={"test_every_event_of_a_real_step": {"checkpointing": "selective"}},
    ),
    Proof(
        letter="R", engine="simulate", file="simulate/test_fused_loss.py", says="",
        tests={"test_every_event_of_a_real_step": {"loss": "fused", "family": "llama"}},
    ),
    Proof(
        letter="R", engine="simulate", file="simulate/test_accumulated_steps.py", says="",
        tests={"test_every_event_of_a_real_step": {"family": "llama"}},
    ),
    Proof(
        letter="R", engine="simulate", file="simulate/test_optimizers.py", says="",
        tests={"test_adafactor_s_real_step": {"family": "llama", "optimizer": "adafactor"}},
    ),
    Proof(
        letter="M", engine="simulate", file="measure/test_measure.py",
        says="every part, moment and peak of the simulated CPU, against the measurement there",
        tests={"TestMemory.test_the_simulation_is_right_about_every_row": NOTHING},
    ),
    Proof(
        letter="M", engine="simulate", file="measure/test_every_cell.py", says="",
        tests={"test_every_method_on_every_architecture": NOTHING, "test_every_option": NOTHING},
    ),
    Proof(
        letter="W", engine="simulate", file="measure/test_distributed.py",
        says="every part and peak of a simulated rank, against two and four real processes on the CPU",
        tests={"test_the_simulated_rank_has_the_same_bytes": NOTHING},
    ),
    Proof(
        letter="M", engine="measure", file="measure/test_measure.py",
        says="the measured peak on the CPU, against PyTorch's profiler and storages counted by hand",
        tests={"TestMemory.test_the_peak_is_the_profiler_s": NOTHING},
    ),
    Proof(
        letter="C", engine="measure", file="measure/test_measure.py",
        says="every part, moment and peak, against the simulated CPU, which makes its bytes on meta tensors",
        tests={"TestMemory.test_the_simulation_is_right_about_every_row": NOTHING},
    ),
    Proof(
        letter="C", engine="measure", file="measure/test_every_cell.py", says="",
        tests={"test_every_method_on_every_architecture": NOTHING, "test_every_option": NOTHING},
    ),
    Proof(
        letter="Q", engine="measure", file="measure/test_promises.py",
        says="a real step on the CPU keeps what the method promises (frozen matrices, dtypes, kernels, states)",
        tests={"test_an_honest_run_keeps_every_promise": NOTHING},
    ),
    Proof(
        letter="W", engine="measure", file="measure/test_distributed.py",
        says="what two and four processes measure on the CPU, against the simulated rank",
        tests={"test_the_simulated_rank_has_the_same_bytes": NOTHING},
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run that a test compares."""

    proof: Proof
    method: str
    architecture: str
    options: Mapping[str, Any]
    slow: bool
    """Whether only the slow tests have it."""


def function_of(proof: Proof, test: str) -> Any:
    """Return a test's function; AttributeError: there is none of that name."""
    found: Any = importlib.import_module("tests." + proof.file.removesuffix(".py").replace("/", "."))
    for name in test.split("."):
        found = getattr(found, name)
    return found


def parametrised(function: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the parameters of each case of a test, and whether it is marked slow."""
    columns = []
    for mark in getattr(function, "pytestmark", ()):
        if mark.name != "parametrize":
            continue
        names, values = mark.args if len(mark.args) == 2 else (mark.args[0], mark.kwargs["argvalues"])
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        columns.append([_row(names, value) for value in values])
    for rows in itertools.product(*columns):
        yield {name: value for row, _ in rows for name, value in row.items()}, any(slow for _, slow in rows)


def _row(names: list[str], value: Any) -> tuple[dict[str, Any], bool]:
    marks = {mark.name for mark in getattr(value, "marks", ())}
    if isinstance(value, type(pytest.param(0))):
        values = value.values
    else:
        values = (value,) if len(names) == 1 else value
    return dict(zip(names, values, strict=True)), "slow" in marks


def _case(proof: Proof, module: Any, given: dict[str, Any], slow: bool) -> Case:
    """Read what a test gives its run, by the names that all of them are called by."""
    run = module.RUNS[given["name"]] if "deed" in given else given.get("run")
    if "option" in given:
        run = technique_run(given["option"], given["value"])
    if isinstance(run, RunSpec):
        options = {each.name: getattr(run, each.name) for each in fields(run)}
        options |= {"dropout": run.method.dropout, "adapted": run.method.layers}
        family, method = run.model.name, run.method.name
    else:
        options = {**given, **given.get("options", {})}
        options |= module.WAYS[given["way"]] if "way" in given else {}
        family, method = given.get("family", ""), options["method"]
        options["prepare_kbit"] = given.get("preparation", "none")
    architecture = str(given.get("architecture") or tiny_configs()[family]["model_type"])
    return Case(proof=proof, method=method, architecture=architecture, options=options, slow=slow)


@cache
def cases() -> tuple[Case, ...]:
    """Return every run that a test of `PROOFS` compares."""
    found = []
    for proof in PROOFS:
        for test, fixed in proof.tests.items():
            function = function_of(proof, test)
            module = importlib.import_module(function.__module__)
            found += [_case(proof, module, {**fixed, **given}, slow) for given, slow in parametrised(function)]
    return tuple(found)


def proves(proof: Proof, engine: str) -> bool:
    """Return whether a test holds an engine to something: what compares closed forms and simulation holds both."""
    return proof.engine == engine or (proof.engine == "both" and engine in ("analytic", "simulate"))


def letters(found: list[Case]) -> str:
    """Return the letters of the tests, in lower case of those that only the slow tests have."""
    quick = {case.proof.letter for case in found if not case.slow}
    order = dict.fromkeys(proof.letter for proof in PROOFS)
    every = {case.proof.letter for case in found}
    return "".join(letter if letter in quick else letter.lower() for letter in order if letter in every)


@cache
def _by_cell(engine: str) -> Mapping[tuple[str, str], list[Case]]:
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases():
        if proves(case.proof, engine):
            found.setdefault((case.method, case.architecture), []).append(case)
    return found


def proof_of_method(engine: str, method: str, architecture: str) -> str:
    """Return the letters of the tests that compare what an engine says of a method on an architecture."""
    return letters(_by_cell(engine).get((method, architecture), []))


def proof_of_technique(engine: str, option: str, value: Any) -> str:
    """Return the letters of the tests that compare an engine's word on runs with an option, whatever the model."""
    return letters([case for case in cases() if proves(case.proof, engine) and _has(case, option, value)])


def _has(case: Case, option: str, value: Any) -> bool:
    """Return whether a case has an option's value, given or decided by its method (nf4 of qlora, say)."""
    if option == "adapted":
        return case.options.get("adapted") is not None
    default = RunSpec.__dataclass_fields__[option].default if option in RunSpec.__dataclass_fields__ else None
    given = case.options.get(option, default)
    decided = given
    if option in ("quant", "optimizer", "adapter_dtype"):
        decided = getattr(_plain(case.method).replace(**{option: given}), f"resolved_{option}")
    return value in (given, decided) and not (option == "adapter_dtype" and case.method == "full")


@cache
def _plain(method: str) -> RunSpec:
    return run_of("llama", method).replace(optimizer="auto")
