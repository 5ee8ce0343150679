"""What each kind of figure draws: the values on its axes, its labels and units, read from the Figure object."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorafa_prof.compare import compare
from lorafa_prof.reports.figures import KINDS, Drawing, rendered
from lorafa_prof.reports.figures.style import METHOD_LOOKS, MOST_PAGES
from lorafa_prof.results import Comparison, Fit, Measurement, Memory, Prediction, Stretch, Threshold, Throughput
from lorafa_prof.results.collection import Collection
from lorafa_prof.specs import METHODS, MethodSpec, RunSpec
from tests.support.hand_made import CARD, MIB, RUN, VERSIONS, measurement, memory, prediction, without_memory

GIB = 2**30
HOSTILE = 'm$\\frac{x$ <script>alert("1") & ]]> --> \n\x1b[2J'


def run_with(method: str = "lora", rank: int = 4, name: str = "small", **options: Any) -> RunSpec:
    return RUN.replace(method=MethodSpec(name=method, rank=rank), model=replace(RUN.model, name=name), **options)


def of_peak(peak: int | None, **figures: Any) -> Memory:
    return memory(peak_allocated_bytes=peak, **figures)


def of_size(mib: int, **options: Any) -> Prediction:
    return prediction(of_peak(mib * MIB), run=run_with(**options))


def drawn(kind: str, **found: Sequence[Any]) -> list[Drawing]:
    return KINDS[kind].draw(Collection(**{name: tuple(each) for name, each in found.items()}))


def only(drawings: Sequence[Drawing]) -> Figure:
    [drawing] = drawings
    return drawing.figure


def points(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """What each labelled marker stands at."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in axes.get_lines():
        label = str(line.get_label())
        if line.get_marker() not in ("None", "") and not label.startswith("_"):
            found.setdefault(label, []).extend(
                zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True)
            )
    return found


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def texts_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_every_method_has_a_look_of_its_own() -> None:
    """A marker and a dash that no other has: colour is not needed to tell them apart."""
    assert set(METHOD_LOOKS) == set(METHODS)
    assert len({look.marker for look in METHOD_LOOKS.values()}) == len(METHODS)
    assert len({str(look.dashes) for look in METHOD_LOOKS.values()}) == len(METHODS)


class TestParts:
    """Stacked bars of whatever there is."""

    def test_predictions_by_method(self) -> None:
        """One bar each, with its method below, its peak above and the common configuration in the title."""
        figure = only(drawn("parts", predictions=[of_size(200, method="lora"), of_size(210, method="full")]))
        [axes] = figure.axes
        assert [label.get_text() for label in axes.get_xticklabels()] == ["LoRA", "Full-FT"]
        assert {"200.00", "210.00"} <= set(texts_of(axes))
        assert axes.get_ylabel() == "MiB"
        assert "(simulate)" in axes.get_title(loc="left")
        assert "batch 2, 32 tokens" in axes.get_title(loc="left")

    def test_heights_are_the_parts(self) -> None:
        """Bottom to top in the order of the parts; nothing for parts of no bytes or unknown ones."""
        known = of_peak(100 * MIB, weights_bytes=60 * MIB, adapter_bytes=None, activations_bytes=30 * MIB,
                        logits_bytes=0, workspace_bytes=10 * MIB)  # fmt: skip
        [axes] = only(drawn("parts", measurements=[measurement(known)])).axes
        bars = [(round(bar.get_y(), 6), round(bar.get_height(), 6)) for bar in axes.patches if bar.get_height()]
        assert bars == [(0, 60), (60, 30), (90, 10)]
        assert axes.get_legend_handles_labels()[1].count("adapters") == 0

    def test_an_unknown_peak_is_no_bar(self) -> None:
        """It is said, beside one that is known."""
        seen = [measurement(), without_memory("oom")]
        [axes] = only(drawn("parts", measurements=seen)).axes
        assert "no peak" in texts_of(axes)
        assert drawn("parts", measurements=[without_memory("oom")]) == []

    def test_a_pair_stands_side_by_side(self) -> None:
        """What has been compared is drawn once."""
        seen, said = measurement(), prediction()
        found = Collection(
            measurements=(seen,), predictions=(said,), comparisons=(compare(seen, [said]),), compared=(seen, said)
        )
        [axes] = only(KINDS["parts"].draw(found)).axes
        assert [label.get_text() for label in axes.get_xticklabels()] == ["observed", "simulate"]
        # and so it is where the comparison was read from a file
        saved = Collection(measurements=(seen,), comparisons=(compare(seen, [said]),))
        [axes] = only(KINDS["parts"].draw(saved)).axes
        assert len(axes.get_xticklabels()) == 2

    def test_models_are_not_mixed(self) -> None:
        """Bars of a large model would dwarf those of a small one."""
        assert len(drawn("parts", predictions=[of_size(1, name="a"), of_size(90_000, name="b")])) == 2

    def test_more_than_anybody_wants(self) -> None:
        """No more than so many figures, and a note that says how many results are left out."""
        drawings = drawn("parts", predictions=[of_size(1, name=f"m{number}") for number in range(MOST_PAGES + 3)])
        assert len(drawings) == MOST_PAGES
        assert "3 of 15" in drawings[-1].note


def compared(observed: int | None, predicted: int | None, **options: Any) -> Comparison:
    run = run_with(**options)
    seen = measurement(of_peak(observed, peak_reserved_bytes=None), run=run)
    return compare(seen, [prediction(of_peak(predicted, peak_reserved_bytes=None), run=run)])


class TestScatter:
    """Predicted against observed."""

    def test_points(self) -> None:
        """In the unit of the axes; below them the error in per cent of what was observed."""
        figure = only(drawn("scatter", comparisons=[compared(2 * GIB, 3 * GIB), compared(4 * GIB, 4 * GIB)]))
        peaks, errors = figure.axes
        at = [(line.get_xdata()[0], line.get_ydata()[0]) for line in peaks.get_lines() if line.get_marker() == "s"]
        assert at == [(2, 3), (4, 4)]
        missed = [line.get_ydata()[0] for line in errors.get_lines() if line.get_marker() == "s"]
        assert missed == [50, 0]
        assert (peaks.get_ylabel(), errors.get_xlabel(), errors.get_ylabel()) == (
            "predicted, GiB", "observed, GiB", "error, %",
        )  # fmt: skip
        assert legend_of(figure) == ["LoRA", "simulate", "within 1%", "within 5%"]

    def test_bands(self) -> None:
        """1 % and 5 % of what was observed, on both axes."""
        figure = only(drawn("scatter", comparisons=[compared(2 * GIB, 3 * GIB)]))
        wide, narrow = figure.axes[0].collections
        for band, share in ((wide, 0.05), (narrow, 0.01)):
            ratios = {round(float(y / x), 6) for x, y in band.get_paths()[0].vertices}
            assert ratios == {1 + share, 1 - share}
        spans = [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in figure.axes[1].patches]
        assert spans == [(-5, 5), (-1, 1)]

    def test_what_either_side_lacks_is_no_point(self) -> None:
        """Not at 0 either."""
        assert drawn("scatter", comparisons=[compared(None, 3), compared(3, None), compare(measurement(), [])]) == []

    def test_reserved_is_another_panel(self) -> None:
        """Where both sides have it."""
        figure = only(drawn("scatter", comparisons=[compare(measurement(), [prediction()])]))
        assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["peak allocated, MiB", "peak reserved, MiB"]


def stretches(*figures: tuple[str, str, int, int, int | None]) -> tuple[Stretch, ...]:
    return tuple(
        Stretch(phase=phase, module=module, peak_allocated_bytes=peak * MIB, end_allocated_bytes=end * MIB,
                reserved_bytes=None if reserved is None else reserved * MIB)
        for phase, module, peak, end, reserved in figures
    )  # fmt: skip


LINE = stretches(
    ("forward", "layers.0", 120, 110, 200), ("forward", "layers.1", 150, 140, 200), ("backward", "loss", 180, 130, 220),
    ("backward", "layers.1", 140, 100, 220), ("optimizer", "", 110, 100, 220),
)  # fmt: skip


class TestTimeline:
    """Allocated memory over one step."""

    def test_the_line(self) -> None:
        """Each stretch goes over its peak to its end."""
        [axes] = only(drawn("timeline", measurements=[measurement(timeline=LINE)])).axes
        line = next(each for each in axes.get_lines() if each.get_label() == "allocated")
        at = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert [at[x] for x in (0.5, 1, 1.5, 2, 2.5, 3)] == [120, 110, 150, 140, 180, 130]
        assert axes.get_ylabel() == "MiB"
        assert "not to the scale of time" in axes.get_xlabel()

    def test_peak_and_phases(self) -> None:
        """Marked where they are, with the module."""
        [axes] = only(drawn("timeline", measurements=[measurement(timeline=LINE)])).axes
        assert points(axes)["peak"] == [(2.5, 180)]
        said = texts_of(axes)
        assert "180.00 MiB\nloss" in said
        assert {"forward", "backward", "optimizer"} <= set(said)

    def test_reserved_where_it_is_known(self) -> None:
        """On the CPU there is none, and so no line at 0."""
        for reserved, labels in ((220, {"reserved"}), (None, set())):
            line = tuple(replace(each, reserved_bytes=reserved and reserved * MIB) for each in LINE)
            [axes] = only(drawn("timeline", measurements=[measurement(timeline=line)])).axes
            assert {str(each.get_label()) for each in axes.get_lines()} & {"reserved"} == labels

    def test_the_predicted_peak(self) -> None:
        """A level beside it, where the run's prediction is among the files."""
        seen, said = measurement(timeline=LINE), prediction(of_peak(190 * MIB))
        [axes] = only(drawn("timeline", measurements=[seen], comparisons=[compare(seen, [said])])).axes
        level = next(line for line in axes.get_lines() if line.get_label() == "peak, simulate")
        assert list(level.get_ydata()) == [190, 190]

    def test_a_script(self) -> None:
        """Has a timeline as well."""
        seen = measurement(run=None, command=("train.py",), timeline=LINE)
        [axes] = only(drawn("timeline", measurements=[seen])).axes
        assert "train.py" in axes.get_title(loc="left")


class TestRank:
    """Peak against the rank."""

    def test_lines(self) -> None:
        """One a method; full fine-tuning, which has no rank, is a level."""
        said = [of_size(mib, rank=rank) for rank, mib in ((8, 100), (64, 150), (16, 110))]
        figure = only(drawn("rank", predictions=[*said, of_size(400, method="full", rank=8)]))
        [axes] = figure.axes
        assert points(axes) == {"LoRA": [(8, 100), (16, 110), (64, 150)]}
        level = next(line for line in axes.get_lines() if line.get_linewidth() == 0.9)
        assert list(level.get_ydata()) == [400, 400]
        assert legend_of(figure) == ["LoRA", "simulate", "Full-FT (no rank)"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "MiB")
        assert axes.get_ylim()[0] == 0

    def test_observed_has_points_and_no_line(self) -> None:
        """Nothing is claimed between them."""
        seen = [measurement(of_peak(rank * MIB), run=run_with(rank=rank)) for rank in (8, 16)]
        [axes] = only(drawn("rank", measurements=seen)).axes
        assert points(axes) == {"LoRA": [(8, 8), (16, 16)]}
        assert all(line.get_linestyle() == "None" for line in axes.get_lines())

    def test_one_rank_is_none(self) -> None:
        """And so is an unknown peak."""
        assert drawn("rank", predictions=[of_size(1, rank=8), of_size(2, rank=8, method="vera")]) == []
        unknown = prediction(of_peak(None), run=run_with(rank=16))
        assert drawn("rank", predictions=[of_size(1, rank=8), unknown]) == []

    def test_two_of_one_look_are_not_in_one_panel(self) -> None:
        """LoRA with either optimizer would be the same line twice: titles tell them apart, the legend has it once."""
        said = [of_size(n * rank, rank=rank, optimizer=o) for n, o in ((1, "adamw"), (2, "sgd")) for rank in (8, 16)]
        figure = only(drawn("rank", predictions=said))
        assert [points(axes) for axes in figure.axes] == [{"LoRA": [(8, 8), (16, 16)]}, {"LoRA": [(8, 16), (16, 32)]}]
        assert ["sgd" in axes.get_title(loc="left") for axes in figure.axes] == [
            False,
            True,
        ]  # AdamW goes without saying
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LoRA", "simulate"]

    def test_devices_are_not_mixed(self) -> None:
        """What was measured on two of them is of two panels."""
        seen = [
            measurement(of_peak(rank * MIB), run=run_with(rank=rank), environment={"device": device})
            for rank in (8, 16) for device in ("one", "two")
        ]  # fmt: skip
        figure = only(drawn("rank", measurements=seen))
        assert [axes.get_title(loc="left").replace("\n", " ").rpartition(", ")[2] for axes in figure.axes] == [
            "measured on one", "measured on two",
        ]  # fmt: skip

    def test_what_differs_in_more_is_another_line_or_panel(self) -> None:
        """Batches are panels of their own."""
        said = [of_size(rank * bs, rank=rank, bs=bs) for rank in (8, 16) for bs in (1, 2)]
        figure = only(drawn("rank", predictions=said))
        assert [points(axes)["LoRA"] for axes in figure.axes] == [[(8, 8), (16, 16)], [(8, 16), (16, 32)]]
        assert ["batch 1" in axes.get_title(loc="left") for axes in figure.axes] == [True, False]


class TestLayers:
    """Peak against the share of the layers that have adapters."""

    def of_layers(self, mib: int, layers: tuple[int, ...] | None, method: str = "lora") -> Prediction:
        """A prediction of a model of 8 layers."""
        run = RUN.replace(
            model=replace(RUN.model, num_layers=8, layer_types=()), method=MethodSpec(name=method, layers=layers)
        )
        return prediction(of_peak(mib * MIB), run=run)

    def test_lines(self) -> None:
        """The last layers and the first are panels, which all layers end; full fine-tuning is the level of both."""
        said = [
            self.of_layers(80, None), self.of_layers(30, (6, 7)), self.of_layers(50, (4, 5, 6, 7)),
            self.of_layers(70, (0, 1)), self.of_layers(60, (0, 7)), self.of_layers(400, None, "full"),
        ]  # fmt: skip
        figure = only(drawn("layers", predictions=said))
        last, first = figure.axes
        assert points(last) == {"LoRA": [(25, 30), (50, 50), (100, 80)]}
        assert points(first) == {"LoRA": [(25, 70), (100, 80)]}
        assert "last layers" in " ".join(last.get_title(loc="left").split())
        assert "first layers" in " ".join(first.get_title(loc="left").split())
        for axes in figure.axes:
            assert [list(line.get_ydata()) for line in axes.get_lines() if line.get_linewidth() == 0.9] == [[400, 400]]
            assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
        assert legend_of(figure)[-1] == "Full-FT (no adapters)"

    def test_one_choice_is_none(self) -> None:
        """Nor are layers in between any share."""
        assert drawn("layers", predictions=[self.of_layers(8, None), self.of_layers(9, None, "vera")]) == []
        assert drawn("layers", predictions=[self.of_layers(8, (3, 4)), self.of_layers(9, (2, 3))]) == []

    def test_other_layers_are_other_lines_against_the_rank(self) -> None:
        """The peaks of two ranks are compared where the layers are the same."""
        said = [
            prediction(of_peak(rank * n * MIB), run=RUN.replace(method=replace(RUN.method, rank=rank, layers=layers)))
            for n, layers in ((1, (1,)), (2, None)) for rank in (8, 16)
        ]  # fmt: skip
        figure = only(drawn("rank", predictions=said))
        assert [list(points(axes).values()) for axes in figure.axes] == [[[(8, 8), (16, 16)]], [[(8, 16), (16, 32)]]]


class TestCards:
    """A rank's peak against the number of cards."""

    def test_ranks(self) -> None:
        """Every rank is a point; one card begins the line."""
        alone = measurement(of_peak(100 * MIB), run=run_with())
        shared = [
            measurement(of_peak(mib * MIB), run=run_with(gpus=2, shard="fsdp"), rank=rank, world_size=2)
            for rank, mib in ((0, 60), (1, 70))
        ]
        figure = only(drawn("cards", measurements=[alone, *shared]))
        assert points(figure.axes[0]) == {"LoRA": [(1, 100), (2, 60), (2, 70)]}
        assert figure.axes[0].get_xlabel() == "cards"

    def test_ways_to_share(self) -> None:
        """Have panels of their own, each of which a single card begins."""
        said = [of_size(mib, gpus=4, shard=shard) for shard, mib in (("ddp", 100), ("fsdp", 40))]
        figure = only(drawn("cards", predictions=[*said, of_size(90)]))
        assert [points(axes) for axes in figure.axes] == [{"LoRA": [(1, 90), (4, 100)]}, {"LoRA": [(1, 90), (4, 40)]}]
        assert [axes.get_title(loc="left").rpartition(", ")[2] for axes in figure.axes] == ["ddp", "fsdp"]

    def test_one_card_is_no_figure(self) -> None:
        """Nothing to draw against."""
        assert drawn("cards", measurements=[measurement()], predictions=[prediction()]) == []


class TestMfu:
    """MFU as measured."""

    def test_bars(self) -> None:
        """In per cent, HFU beside it where it is known."""
        rates = Throughput(step_s=1, mfu=0.4, hfu=0.5)
        seen = [measurement(throughput=rates), measurement(run=run_with("full"), throughput=Throughput(mfu=0.25))]
        [axes] = only(drawn("mfu", measurements=seen)).axes
        assert [bar.get_height() for bar in axes.patches] == [40, 25]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["LoRA", "Full-FT"]
        assert [line.get_ydata()[0] for line in axes.get_lines()] == [50]
        assert axes.get_ylabel().startswith("%")
        assert str(CARD["device"]) in axes.get_title(loc="left")

    def test_unknown_is_not_drawn(self) -> None:
        """Neither as 0 nor at all."""
        unknown = measurement(throughput=Throughput(step_s=1), run=run_with("full"))
        assert drawn("mfu", measurements=[unknown]) == []
        [axes] = only(drawn("mfu", measurements=[unknown, measurement()])).axes
        assert [label.get_text() for label in axes.get_xticklabels()] == ["LoRA"]


def fitting(
    seq: int, max_bs: int | None, device: str = "rtx4090", capacity: int = 24 * GIB, **options: Any
) -> Prediction:
    fit = Fit(device=device, capacity_bytes=capacity, context_bytes=None, fits=True, headroom_bytes=1, max_bs=max_bs)
    return prediction(run=run_with(seq=seq, **options), fit=(fit,))


def threshold(seq: int, most: int, axis: str = "bs", **options: Any) -> Threshold:
    return Threshold(
        engine="analytic", device="rtx4090", axis=axis, run=run_with(seq=seq, **options), versions=VERSIONS,  # type: ignore[arg-type]
        max=most, first_oom=most + 1, limit=99, limited_by="", capacity_bytes=24 * GIB, context_bytes=GIB,
        at_max=None, at_first_oom=None,
    )  # fmt: skip


class TestFrontier:
    """The largest batch against the sequence length."""

    def test_thresholds(self) -> None:
        """One line a method; a length at which nothing fits is at "none", which is no 0 of a logarithmic axis."""
        figure = only(drawn("frontier", thresholds=[threshold(16, 8), threshold(32, 4), threshold(64, 0)]))
        [axes] = figure.axes
        assert points(axes) == {"LoRA": [(16, 8), (32, 4), (64, 0.5)]}
        assert "rtx4090, 24.00 GiB" in axes.get_title(loc="left")
        figure.draw_without_rendering()
        assert [label.get_text() for label in axes.get_yticklabels()] == ["none", "1", "2", "4", "8"]

    def test_predictions(self) -> None:
        """Their largest batch, where it was looked for; every card has a panel."""
        said = [fitting(16, 8), fitting(32, None), fitting(64, 2), fitting(16, 9, "h100"), fitting(32, 5, "h100")]
        figure = only(drawn("frontier", predictions=said))
        assert [points(axes)["LoRA"] for axes in figure.axes] == [[(16, 8), (64, 2)], [(16, 9), (32, 5)]]

    def test_other_axes_and_single_lengths_are_none(self) -> None:
        """Nothing to draw a line through."""
        assert drawn("frontier", thresholds=[threshold(16, 8)]) == []
        assert drawn("frontier", thresholds=[threshold(16, 8, "rank"), threshold(32, 8, "rank")]) == []

    @pytest.mark.parametrize(
        ("environment", "drawn_there"),
        [
            ({"total_bytes": 24 * GIB}, True),
            ({"total_bytes": 80 * GIB}, False),
            ({"device": "NVIDIA H100", "total_bytes": 24 * GIB}, False),
            ({"device": "NVIDIA H100", "total_bytes": 80 * GIB, "cap_bytes": 23 * GIB}, True),
            ({"total_bytes": 24 * GIB, "cap_bytes": 8 * GIB}, False),
        ],
    )
    def test_measured_points(self, environment: dict[str, Any], drawn_there: bool) -> None:
        """Runs on that card, or on as much of another: those that ran, and those that ended out of memory."""
        where = {"device": "NVIDIA GeForce RTX 4090", **environment}
        run = run_with(seq=16)
        seen = (
            measurement(run=run.replace(bs=8), environment=where),
            replace(without_memory("oom"), run=run.replace(bs=9), environment=where),
            replace(without_memory("killed"), run=run.replace(bs=10), environment=where),
        )
        found = Collection(
            measurements=seen, thresholds=(threshold(16, 8), threshold(32, 4)),
            cards={"NVIDIA GeForce RTX 4090": "rtx4090"},
        )  # fmt: skip
        figure = only(KINDS["frontier"].draw(found))
        marks = [
            (line.get_marker(), round(float(line.get_xdata()[0]), 6), line.get_ydata()[0])
            for line in figure.axes[0].get_lines()
            if str(line.get_label()).startswith("_") and len(line.get_xdata()) == 1 and line.get_linestyle() == "None"
        ]
        assert marks == ([("s", 16, 8), ("x", 16, 9)] if drawn_there else [])
        assert ("measured: out of memory" in legend_of(figure)) is drawn_there

    def test_methods_stand_apart(self) -> None:
        """A measured run is where its own line is, beside those of the others."""
        environment = {"device": "rtx4090", "total_bytes": 24 * GIB}
        seen = [measurement(run=run_with(name, seq=16, bs=8), environment=environment) for name in ("lora", "vera")]
        limits = [threshold(seq, most, method=name) for name in ("lora", "vera") for seq, most in ((16, 8), (32, 4))]
        [axes] = only(drawn("frontier", measurements=seen, thresholds=limits)).axes
        first = {str(line.get_marker()): set() for line in axes.get_lines() if line.get_marker() in ("s", "P")}
        for line in axes.get_lines():
            if line.get_marker() in first:
                first[str(line.get_marker())].add(round(float(line.get_xdata()[0]), 6))
        assert all(len(places) == 1 for places in first.values())
        assert first["s"] != first["P"]

    def test_another_configuration_is_not_its(self) -> None:
        """A measured run with checkpointing, of another rank or method is on another frontier."""
        environment = {"device": "rtx4090", "total_bytes": 24 * GIB}
        others = [run_with(seq=16, checkpointing="full"), run_with(seq=16, rank=32), run_with("vera", seq=16)]
        seen = [measurement(run=run, environment=environment) for run in others]
        figure = only(drawn("frontier", measurements=seen, thresholds=[threshold(16, 8), threshold(32, 4)]))
        assert "measured: it ran" not in legend_of(figure)


def timed(bs: int, tokens_per_s: float, name: str) -> Prediction:
    said = fitting(16, None, name, name=name, bs=bs)
    return replace(said, fit=tuple(replace(fit, step_s=1.0, tokens_per_s=tokens_per_s) for fit in said.fit))


def everything(name: str = "small") -> Collection:
    """Results that every kind has data in."""
    seen = measurement(timeline=LINE, run=run_with(name=name), environment=CARD | {"device": name})
    said = prediction(run=run_with(name=name))
    shared = measurement(run=run_with(name=name, gpus=2, shard="ddp"), world_size=2, error=name)
    some = said.run.replace(method=replace(said.run.method, layers=(said.run.spec.depth - 1,)))
    return Collection(
        measurements=(seen, shared),
        predictions=(
            said, prediction(run=some), of_size(7, rank=16, name=name), fitting(16, 3, name, name=name),
            fitting(32, 2, name, name=name), *(timed(bs, 1000.0 * bs, name) for bs in (1, 2)),
        ),
        comparisons=(compare(seen, [said]),),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
class TestFiles:
    """Every kind, as a file."""

    def test_the_same_file_each_time(self, kind: str) -> None:
        """Drawn anew from the same results, whatever the user's own settings are."""
        import matplotlib as mpl

        first = [rendered(drawing.figure, "svg") for drawing in KINDS[kind].draw(everything())]
        with mpl.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.fonttype": "path"}):
            again = [rendered(drawing.figure, "svg") for drawing in KINDS[kind].draw(everything())]
        assert first
        assert first == again

    def test_names_are_names(self, kind: str) -> None:
        """A name with a dollar sign is no formula, one with a bracket no element; text in an SVG is text."""
        for drawing in KINDS[kind].draw(everything(HOSTILE)):
            svg = rendered(drawing.figure, "svg")
            assert b"<script" not in svg
            assert b"\x1b" not in svg
            root = ET.parse(io.BytesIO(svg)).getroot()
            said = "".join("".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))
            assert "$" in said or kind == "scatter"
            assert not list(root.iter("{http://www.w3.org/2000/svg}script"))

    def test_captions_say_what_is_seen(self, kind: str) -> None:
        """For those who do not see it: a sentence with figures in it."""
        for drawing in KINDS[kind].draw(everything()):
            assert drawing.caption.endswith(".")
            assert any(letter.isdigit() for letter in drawing.caption)

    def test_nothing_is_no_figure(self, kind: str) -> None:
        """An empty collection draws nothing."""
        assert KINDS[kind].draw(Collection()) == []


def test_the_kinds_are_those_of_the_command_line() -> None:
    """Named there a second time, so that the help costs no import."""
    from lorafa_prof.cli.plot import KINDS as NAMED

    assert tuple(KINDS) == NAMED


def test_measurements_of_unknown_things_are_drawn_nowhere() -> None:
    """A run that came to nothing has no figure of any kind."""
    found: Measurement = without_memory("error")
    assert all(kind.draw(Collection(measurements=(found,))) == [] for kind in KINDS.values())


@pytest.mark.parametrize("size", [0, -5, 1, 10**30])
def test_nonsense_of_any_size_is_drawn(size: int) -> None:
    """A file may say anything: no figure fails on it, nor warns."""
    figures = {field: size for field in Memory.__dataclass_fields__ if field.endswith("_bytes")}
    strange = memory(**figures, moments={"forward": size})
    line = tuple(
        replace(each, peak_allocated_bytes=size, end_allocated_bytes=size, reserved_bytes=size) for each in LINE
    )
    rates = Throughput(step_s=float(size), mfu=float(size), hfu=float(size))
    seen = [
        measurement(strange, run=run_with(rank=rank, gpus=gpus), timeline=line, throughput=rates)
        for rank, gpus in ((8, 1), (16, 1), (8, 2))
    ]
    said = [prediction(strange, run=each.run) for each in seen]
    found = Collection(
        measurements=tuple(seen), predictions=tuple(said),
        comparisons=tuple(compare(m, [p]) for m, p in zip(seen, said, strict=True)),
        thresholds=(threshold(16, max(size, 0)), threshold(32, 1)),
    )  # fmt: skip
    for kind in KINDS.values():
        for drawing in kind.draw(found):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert rendered(drawing.figure, "svg"), drawing.name


def test_hatches_of_circles_are_arcs() -> None:
    """In an SVG; they are as large as the curves that matplotlib writes, and a ring keeps its hole."""
    [drawing] = drawn("parts", predictions=[prediction()])
    svg = rendered(drawing.figure, "svg").decode()
    patterns = re.findall(r"<pattern .*?</pattern>", svg, re.DOTALL)
    paths = [re.findall(r' d="([^"]*)"', pattern)[0] for pattern in patterns]
    round_ones = [path for path in paths if "a" in path]
    assert len(round_ones) == 2  # adapters have dots, workspaces rings
    assert not [path for path in paths if "C" in path]
    radii = [{round(float(radius), 1) for radius in re.findall(r"a([\d.]+)", path)} for path in round_ones]
    ways = [set(re.findall(r" 0 1 ([01]) ", path)) for path in round_ones]
    assert sorted(map(len, radii)) == sorted(map(len, ways)) == [1, 2]
    assert len(svg) < 100_000
