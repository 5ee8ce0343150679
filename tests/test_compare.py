"""A measurement beside predictions: errors, the unexplained rest, where they part ways, and what a tolerance says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.compare import MOST_ITEMS, Tolerance, capacity, compare, is_held, is_of, misses
from lorafa_prof.errors import BadInputError
from lorafa_prof.ledger import Category
from lorafa_prof.results import PART_FIELDS, Comparison, Fit, PhaseMemory, Row, VersionDifference
from tests.support.hand_made import CARD, MIB, RUN, ledger, measurement, memory, prediction, without_memory

ACTIVATIONS, OPTIMIZER, WEIGHTS = Category.ACTIVATIONS, Category.OPTIMIZER, Category.WEIGHTS


def row_of(comparison: Comparison, name: str) -> Row:
    found = comparison.row(name)
    assert found is not None
    return found


class TestFigures:
    """Each figure is there with what both sides say of it."""

    def test_an_error_is_the_prediction_less_the_observation(self) -> None:
        """60 MiB of activations were observed and 54 predicted: 6 too few, a tenth."""
        found = compare(measurement(), [prediction(memory(activations_bytes=54 * MIB))])
        row = row_of(found, "activations_bytes")
        assert (row.observed, row.predicted) == (60 * MIB, (54 * MIB,))
        assert row.error(0) == -6 * MIB
        assert row.relative_error(0) == -0.1

    def test_every_figure_has_its_row(self) -> None:
        """The names are those of JSON; each once, whatever is known of it."""
        names = [row.name for row in compare(measurement(), [prediction()]).rows]
        assert names == [
            *PART_FIELDS, "peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "fragmentation_bytes",
            "context_bytes", "peak_device_bytes", "forward", "loss", "backward", "saved_activations_bytes",
            "trained_gradients_bytes", "total", "trainable", "step_s", "tokens_per_s", "model_flops", "executed_flops",
            "model_flops_6n", "mfu", "mfu_6n", "hfu",
        ]  # fmt: skip

    def test_what_a_side_lacks_is_lacking(self) -> None:
        """The simulation has no step time, and nobody observed the executed operations: no error, and no 0."""
        found = compare(measurement(), [prediction()])
        step, executed = row_of(found, "step_s"), row_of(found, "executed_flops")
        assert (step.observed, step.predicted, step.error(0), step.relative_error(0)) == (0.5, (None,), None, None)
        assert (executed.observed, executed.predicted, executed.error(0)) == (None, (None,), None)

    def test_a_share_of_nothing_is_not_told(self) -> None:
        """Where nothing was observed an error has bytes and no percentage; no error is 0 %."""
        found = compare(measurement(), [prediction(memory(gradients_bytes=512))])
        assert row_of(found, "gradients_bytes").error(0) == 512
        assert row_of(found, "gradients_bytes").relative_error(0) is None
        assert row_of(found, "optimizer_bytes").relative_error(0) == 0

    def test_phases_of_a_measurement_without_moments(self) -> None:
        """`phases` says the same as `memory.moments`, also where no traced step was summed up."""
        empty = dict.fromkeys(("peak_requested_bytes", "peak_active_bytes", "peak_reserved_bytes", "device_bytes"))
        phases = (PhaseMemory(phase="load", peak_allocated_bytes=7, end_allocated_bytes=7, **empty),)  # type: ignore[arg-type]
        found = compare(without_memory("oom", phases=phases), [prediction()])
        assert (row_of(found, "load").observed, row_of(found, "load").predicted) == (7, (None,))

    def test_recomputation_is_part_of_the_backward_where_one_side_says_so(self) -> None:
        """Observed apart, predicted together: the larger of the two is compared."""
        seen = memory(moments={"backward": 5, "recompute": 9, "loss": 3})
        found = compare(measurement(seen), [prediction(memory(moments={"backward": 8, "loss": 3}))])
        assert (row_of(found, "backward").observed, row_of(found, "backward").predicted) == (9, (8,))
        assert found.row("recompute") is None
        both = compare(measurement(seen), [prediction(seen)])
        assert (row_of(both, "backward").observed, row_of(both, "recompute").observed) == (5, 9)

    def test_engines_stand_side_by_side(self) -> None:
        """In the order in which they are given, each with its own errors."""
        close, far = prediction(), prediction(memory(peak_allocated_bytes=250 * MIB), engine="analytic")
        found = compare(measurement(), [far, close])
        assert [side.engine for side in found.sides] == ["analytic", "simulate"]
        assert [row_of(found, "peak_allocated_bytes").error(side) for side in (0, 1)] == [50 * MIB, 0]


BYTES = st.one_of(st.none(), st.integers(0, 2**50))
MEMORIES = st.fixed_dictionaries(dict.fromkeys((*PART_FIELDS, "peak_allocated_bytes"), BYTES))


class TestTheRest:
    """The error of the peak is that of its parts and a rest that is said, not hidden in one of them."""

    def test_the_rest_by_hand(self) -> None:
        """The peak is 10 MiB too low; activations explain 6 of them and logits 1, so that 3 are left."""
        said = memory(activations_bytes=54 * MIB, logits_bytes=19 * MIB, peak_allocated_bytes=190 * MIB)
        [side] = compare(measurement(), [prediction(said)]).sides
        assert side.unexplained_bytes == -3 * MIB

    @given(seen=MEMORIES, said=MEMORIES)
    def test_parts_and_rest_add_up(self, seen: dict[str, int | None], said: dict[str, int | None]) -> None:
        """Exactly, for any figures, also where sides lack parts; without both peaks there is no rest."""
        found = compare(measurement(memory(**seen)), [prediction(memory(**said))])
        errors = [row_of(found, name).error(0) for name in PART_FIELDS]
        peak, rest = row_of(found, "peak_allocated_bytes").error(0), found.sides[0].unexplained_bytes
        assert (rest is None) == (peak is None)
        if peak is not None:
            assert sum(error for error in errors if error is not None) + (rest or 0) == peak

    def test_another_moment_is_said(self) -> None:
        """Parts of two moments cannot be compared one by one; their errors and the rest still add up."""
        said = memory("optimizer step", activations_bytes=0, optimizer_bytes=70 * MIB, peak_allocated_bytes=210 * MIB)
        [side] = compare(measurement(), [prediction(said)]).sides
        assert side.same_phase is False
        assert side.unexplained_bytes == 0  # 10 = -60 + 70
        [same] = compare(measurement(memory("backward: a")), [prediction(memory("backward: b"))]).sides
        assert same.same_phase is True
        [unknown] = compare(measurement(memory("")), [prediction()]).sides
        assert unknown.same_phase is None


class TestLedgers:
    """The items that the errors are made of."""

    def test_the_largest_difference_comes_first(self) -> None:
        """Layers count together, PEFT's wrapped layer is the layer itself, what is alike is not named."""
        seen = ledger(
            (ACTIVATIONS, "layers.0.mlp", "silu", 100), (ACTIVATIONS, "layers.1.mlp", "silu", 100),
            (ACTIVATIONS, "layers.*.norm", "mul", 50), (ACTIVATIONS, "head", "mm", 1),
            (WEIGHTS, "q.base_layer", "weight", 30),
        )  # fmt: skip
        said = ledger(
            (ACTIVATIONS, "layers.*.mlp", "silu", 170), (ACTIVATIONS, "layers.*.norm", "mul", 50),
            (ACTIVATIONS, "layers.*.norm", "rsqrt", 90), (WEIGHTS, "q", "weight", 30), (ACTIVATIONS, "head", "mm", 1),
        )  # fmt: skip
        [side] = compare(measurement(ledger=seen), [prediction(ledger=said)]).sides
        assert [(item.module, item.tensor, item.error_bytes) for item in side.items] == [
            ("layers.*.norm", "rsqrt", 90), ("layers.*.mlp", "silu", -30),
        ]  # fmt: skip
        assert side.items_left_out == 0

    def test_names_alone_make_no_difference(self) -> None:
        """A device that does not tell operators calls a block otherwise; where bytes agree, nothing differs."""
        seen = ledger((ACTIVATIONS, "mlp", "", 70), (OPTIMIZER, "a", "exp_avg", 8), (OPTIMIZER, "b", "exp_avg", 8))
        said = ledger((ACTIVATIONS, "mlp", "silu", 70), (OPTIMIZER, "", "zeros_like", 16))
        [side] = compare(measurement(ledger=seen), [prediction(ledger=said)]).sides
        assert side.items == ()

    def test_a_module_with_other_names_is_compared_as_a_whole(self) -> None:
        """70 bytes without a name against 40 and 50 with one: 20 more, of no single tensor."""
        seen = ledger((ACTIVATIONS, "mlp", "", 70))
        said = ledger((ACTIVATIONS, "mlp", "silu", 40), (ACTIVATIONS, "mlp", "mul", 50))
        [side] = compare(measurement(ledger=seen), [prediction(ledger=said)]).sides
        [item] = side.items
        assert (item.tensor, item.observed_bytes, item.predicted_bytes) == ("", 70, 90)

    def test_the_rest_is_counted(self) -> None:
        """No more than the largest are kept."""
        said = ledger(*((ACTIVATIONS, f"m{number}x", "mm", number + 1) for number in range(MOST_ITEMS + 5)))
        [side] = compare(measurement(ledger=ledger()), [prediction(ledger=said)]).sides
        assert (len(side.items), side.items_left_out) == (MOST_ITEMS, 5)

    def test_closed_forms_have_names_of_their_own(self) -> None:
        """Their ledgers are not held against the observed one, only their parts are."""
        seen, said = ledger((ACTIVATIONS, "a", "b", 1)), ledger((ACTIVATIONS, "c", "d", 2))
        [side] = compare(measurement(ledger=seen), [prediction(ledger=said, engine="analytic")]).sides
        assert side.items == ()


class TestSameRun:
    """Only predictions of the measured run are held against it."""

    def test_what_is_automatic_is_spelled_out(self) -> None:
        """The same step under another name of the model, or with its defaults written out."""
        same = RUN.replace(model=replace(RUN.model, name="./small"), optimizer="adamw", adapter_dtype="fp32")
        assert is_of(prediction(run=same), measurement())
        assert not is_of(prediction(run=RUN.replace(bs=3)), measurement())
        assert not is_of(prediction(), measurement(run=None))

    def test_another_run_is_refused(self) -> None:
        """Its errors would mean nothing."""
        with pytest.raises(BadInputError, match="another run"):
            compare(measurement(), [prediction(run=RUN.replace(seq=33))])

    def test_versions_that_differ_are_named(self) -> None:
        """A build is not a release, a prediction for 2.13 is for 2.13.0, and engine and Python decide nothing."""
        versions = {"engine": "analytic", "torch": "2.13", "transformers": "5.2", "peft": "0.21.2", "other": "1"}
        [side] = compare(measurement(), [prediction(versions=versions)]).sides
        assert side.version_differences == (
            VersionDifference(name="transformers", observed="5.23.0", predicted="5.2"),
        )  # fmt: skip


class TestVerdicts:
    """Whether the run fits, as observed and as engines say."""

    @pytest.mark.parametrize(
        ("environment", "context", "expected"),
        [
            ({"total_bytes": 100}, 7, 100),
            ({"total_bytes": 100, "cap_bytes": 50}, 7, 57),  # the allocator gets 50, the context is beside it
            ({"total_bytes": 100, "cap_bytes": 97}, 7, 100),
            ({"cap_bytes": 50}, None, 50),
            ({"total_bytes": "many"}, None, None),
        ],
    )
    def test_capacity(self, environment: dict[str, Any], context: int | None, expected: int | None) -> None:
        """A cap is the allocator's, the card's size is everybody's."""
        assert capacity(environment, context) == expected

    def test_the_engine_s_own_verdict_comes_first(self) -> None:
        """It knows what can be freed; a verdict about another card says nothing."""
        environment = CARD | {"total_bytes": 210 * MIB}
        fit = Fit(
            device="card", capacity_bytes=210 * MIB, context_bytes=None, fits=True, headroom_bytes=0, max_bs=None
        )  # fmt: skip
        asked = prediction(fit=(replace(fit, capacity_bytes=1, fits=False), fit))
        [side] = compare(measurement(environment=environment), [asked]).sides
        assert side.verdict is not None
        assert (side.verdict.fits, side.verdict.agrees) == (True, True)

    @pytest.mark.parametrize(("room", "fits"), [(220, True), (210, None), (199, False)])
    def test_peaks_decide_where_they_can(self, room: int, fits: bool | None) -> None:
        """200 MiB allocated and 220 reserved: in between it depends on what the allocator can free."""
        found = compare(without_memory("oom", environment={"total_bytes": room * MIB}), [prediction()])
        verdict = found.sides[0].verdict
        assert verdict is not None
        assert verdict.fits is fits
        assert verdict.agrees is (None if fits is None else not fits)

    def test_what_was_killed_agrees_with_nothing(self) -> None:
        """Only an end as it should be, and one for lack of memory, say whether it fits."""
        [side] = compare(without_memory("killed"), [prediction()]).sides
        assert side.verdict is not None
        assert side.verdict.agrees is None


class TestTolerance:
    """Exact arithmetic on whole bytes."""

    @pytest.mark.parametrize(
        ("text", "observed", "predicted", "allowed"),
        [
            ("2%", 100, 102, True), ("2%", 100, 98, True), ("2%", 100, 103, False), ("2.5 %", 1000, 1025, True),
            ("0", 100, 100, True), ("0%", 100, 101, False), ("512B", 1000, 1512, True), ("512B", 1000, 1513, False),
            ("1MiB", 0, 2**20, True), ("10%", 0, 1, False), ("7", 10, 3, True),
            # a third of 3 * 10**18 + 1 bytes is no float
            ("0.1%", 10**18, 10**18 + 10**15, True), ("0.1%", 10**18, 10**18 + 10**15 + 1, False),
        ],
    )  # fmt: skip
    def test_allows(self, text: str, observed: int, predicted: int, allowed: bool) -> None:
        """A percentage is of what was observed; its edge is inside."""
        assert Tolerance.parse(text).allows(observed, predicted) is allowed

    @pytest.mark.parametrize("text", ["", "%", "-1%", "1e5%", ".%", "two", "2 percent", "-3", "5parsecs", "١%"])
    def test_others_are_refused(self, text: str) -> None:
        """Told how to write one."""
        with pytest.raises(BadInputError, match="write for example"):
            Tolerance.parse(text)

    def test_misses_are_named(self) -> None:
        """Allocated is 10 MiB of 200 too high, 5 %; reserved is right; the engine that is right is not named."""
        far = prediction(memory(peak_allocated_bytes=210 * MIB), engine="analytic")
        found = compare(measurement(), [far, prediction()])
        [line] = misses(found, Tolerance.parse("4.99%"))
        assert line == "analytic: peak allocated 220200960 bytes, observed 209715200: +10485760 (+5.000%)"
        assert misses(found, Tolerance.parse("5%")) == []

    def test_reserved_is_held_where_both_have_it(self) -> None:
        """An engine without reserved memory does not miss it."""
        wrong = prediction(memory(peak_reserved_bytes=221 * MIB))
        lacking = prediction(memory(peak_reserved_bytes=None), engine="analytic")
        [line] = misses(compare(measurement(), [wrong, lacking]), Tolerance.parse("0"))
        assert line.startswith("simulate: peak reserved")

    def test_a_wrong_verdict_is_a_miss(self) -> None:
        """It ran out of memory where the engine said that it fits."""
        found = compare(without_memory("oom"), [prediction()])
        assert is_held(found)
        assert misses(found, Tolerance.parse("50%")) == ["simulate: said that it fits, and the run ended: oom"]

    def test_nothing_is_held_of_a_script(self) -> None:
        """No run, no prediction."""
        assert not is_held(compare(measurement(run=None), []))


def test_json_there_and_back() -> None:
    """Plain data with the errors beside the figures; what is read back is the same."""
    seen = measurement(ledger=ledger((ACTIVATIONS, "a", "b", 1)), command=("train.py",), unmodelled=("this",))
    said = prediction(memory(activations_bytes=54 * MIB), ledger=ledger((ACTIVATIONS, "a", "b", 2)), assumptions=("x",))
    found = compare(seen, [said, prediction(engine="analytic")], remarks=("said",))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    [entry] = [row for row in data["rows"] if row["name"] == "activations_bytes"]
    assert (entry["errors"], entry["relative_errors"]) == ([-6 * MIB, 0], [-0.1, 0])
    again = Comparison.from_json(data)
    assert again == found
    assert again.to_json() == found.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"kind": "other"}, {"rows": 1}, {"rows": [{}]}, {"rows": None}, {"sides": []}, {"sides": ["x"]},
        {"outcome": "fine"}, {"versions": []}, {"environment": None}, {"rank": "0"}, {"run": {}}, {"run": "x"},
        {"remarks": [1]}, {"more": 1},
    ],
)  # fmt: skip
def test_other_json_is_refused(change: dict[str, Any]) -> None:
    """With an error of ours, whatever is wrong."""
    data = compare(measurement(), [prediction()]).to_json() | change
    with pytest.raises(BadInputError):
        Comparison.from_json(data)
