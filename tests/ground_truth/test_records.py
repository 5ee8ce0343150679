"""Recorded steps against the engines: the records were made without the package, and can contradict it.

Records name the releases that ran; with others installed the step is another one, and its test is skipped.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lorafa_prof.analytic.engine import predict as predict_in_closed_form
from lorafa_prof.catalog import load_device
from lorafa_prof.simulate.engine import simulate
from lorafa_prof.simulate.on_cpu import predict_on_cpu
from lorafa_prof.specs import RunSpec
from tests.ground_truth.moments import MOMENTS, recorded_moments, simulated_moments
from tests.ground_truth.recorder.cases import DEFAULT, GROUPS, case
from tests.ground_truth.records import CPU, Record, devices, read_records, run_of
from tests.support.profiled import kernels_of_known_size

ON_CPU = read_records(CPU)
ON_CARDS = [record for device in devices() if device != CPU for record in read_records(device)]
GIB = 2**30

each_on_a_card = pytest.mark.parametrize("recorded", ON_CARDS, ids=lambda record: f"{record.device}: {record.name}")


def skip_other_releases(recorded: Record) -> None:
    others = recorded.other_releases()
    if others:
        pytest.skip(others)


# -- the CPU -----------------------------------------------------------------------------------------------------------


def some_quick(records: list[Record]) -> list[Any]:
    """One in four in every run of the tests, the others among the slow ones."""
    return [
        pytest.param(record, id=record.name, marks=() if number % 4 == 1 else pytest.mark.slow)
        for number, record in enumerate(records)
    ]


@pytest.mark.parametrize("recorded", some_quick(ON_CPU))
def test_every_moment_on_the_cpu(recorded: Record) -> None:
    """Bytes at the ends of the phases of a steady step, and the most in each, are the recorded ones, exactly."""
    skip_other_releases(recorded)
    with kernels_of_known_size(recorded.data["threads"]):
        assert simulated_moments(recorded) == recorded_moments(recorded)


def test_parameters_are_the_recorded_ones() -> None:
    """Closed forms count what the recorder counted in the real model, all parameters and those trained."""
    for recorded in ON_CPU:
        if recorded.case["dtype"] == "float32":
            continue  # grouped heads in fp32 have no closed form
        counted = predict_in_closed_form(run_of(recorded.case)).parameters
        assert counted["total"] == recorded.data["params"], recorded.name
        assert counted["trainable"] == recorded.data["trainable"], recorded.name


def test_the_command_s_own_peak_on_the_cpu() -> None:
    """What `predict_on_cpu` says lies above the record by no more than the labels and the mask of its own batch."""
    recorded = ON_CPU[0]
    skip_other_releases(recorded)
    memory = predict_on_cpu(run_of(recorded.case), recorded.data["threads"]).memory
    assert memory is not None
    tokens = recorded.case["bs"] * recorded.case["seq"] * 8
    assert memory.peak_allocated_bytes == recorded.steady["peak"] + 2 * tokens


def test_the_records_are_of_all_cases() -> None:
    """No case of the group was left out, failed or was recorded twice."""
    assert [recorded.case for recorded in ON_CPU] == [{**DEFAULT, **wanted} for wanted in GROUPS["families"]()]
    assert {recorded.data["outcome"] for recorded in ON_CPU} == {"ok"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_difference_is_seen(moment: str) -> None:
    """A record with one byte more at any one moment is no longer the simulated step."""
    recorded = ON_CPU[1]
    skip_other_releases(recorded)
    changed = Record(CPU, copy.deepcopy(recorded.data))
    changed.steady[moment] += 1
    assert recorded_moments(changed) != recorded_moments(recorded)


# -- cards -------------------------------------------------------------------------------------------------------------

FINISHED = [record for record in ON_CARDS if record.data["outcome"] == "ok"]
each_finished = pytest.mark.parametrize("recorded", FINISHED, ids=lambda record: f"{record.device}: {record.name}")


@each_on_a_card
def test_no_case_failed_for_the_recorder_s_own_reasons(recorded: Record) -> None:
    """A case ends, or is out of memory; what else went wrong is to be mended and recorded again."""
    assert recorded.data["outcome"] in ("ok", "oom"), recorded.data.get("error")


@pytest.mark.slow
@each_finished
def test_simulated_peaks_of_a_card(recorded: Record) -> None:
    """Peak allocated within 0.1 %, reserved within 1 %, and each moment within 0.1 % of the peak."""
    skip_other_releases(recorded)
    simulation = simulate(run_of(recorded.case), load_device(recorded.device))
    steady, moments = recorded_moments(recorded), simulated_moments(recorded)
    assert moments["peak"] == pytest.approx(steady["peak"], rel=1e-3)
    assert moments == pytest.approx(steady, abs=1e-3 * steady["peak"])
    assert simulation.replayed.reserved.size == pytest.approx(recorded.steady["peak_reserved"], rel=0.01)


@each_finished
def test_closed_forms_of_a_card(recorded: Record) -> None:
    """Peak allocated within 2 %."""
    skip_other_releases(recorded)
    memory = predict_in_closed_form(run_of(recorded.case)).memory
    assert memory is not None
    assert memory.peak_allocated_bytes == pytest.approx(recorded.steady["peak"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [r for r in ON_CARDS if r.case["cap_gib"]], ids=lambda record: record.name)
def test_verdicts_on_emulated_cards(recorded: Record) -> None:
    """A run is out of memory where the card was, and only there."""
    skip_other_releases(recorded)
    cap = int(recorded.case["cap_gib"] * GIB)
    simulation = simulate(run_of(recorded.case), load_device(recorded.device))
    assert (simulation.replay_on(cap).oom is None) == (recorded.data["outcome"] == "ok")


# -- what a case means -------------------------------------------------------------------------------------------------


def run(**changes: object) -> RunSpec:
    return run_of(case(**changes))


def test_a_case_is_the_run_that_it_says() -> None:
    """The recorder's names are those of its own script; each option arrives in the run."""
    plain = run(method="lora-fa", bs=4)
    assert (plain.method.name, plain.method.rank, plain.optimizer) == ("lora-fa-peft", 64, "adamw")
    assert (plain.bs, plain.seq) == (4, 1024)
    assert run(method="lora-fa-opt").resolved_optimizer == "lorafa-peft"
    assert run(method="lora-fa-opt").method.name == "lora-fa-peft"
    assert run(method="qlora").quant == "nf4-dq"
    assert run(ckpt=True).checkpointing == "full"
    assert run(adapter_dtype="bfloat16").resolved_adapter_dtype == "bf16"
    assert (run(dtype="float32", autocast=True).dtype, run(dtype="float32", autocast=True).amp) == ("fp32", True)
    assert run(padding=True).padded
    assert run(layers=8).spec.num_layers == 8
    assert run(targets="qv").method.targets == ("q_proj", "v_proj")


def test_every_case_is_a_run() -> None:
    """Of all groups, those for cards too."""
    for group in GROUPS.values():
        for wanted in group():
            run_of(wanted)
