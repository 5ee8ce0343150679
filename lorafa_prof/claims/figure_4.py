"""Figure 4: how long a sequence fits small cards, and what more layers or higher ranks cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lorafa_prof.analytic.paper import statements as paper
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.claims.asking import ASSUMPTIONS, DEFAULT, Panel, Reply, Told, answers, answers_of_two, fits
from lorafa_prof.claims.reasons import with_reasons
from lorafa_prof.results import Prediction
from lorafa_prof.results.claims import Answer, Assumption, Examined, Level, Point, Statement
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.units import format_gib

METHODS = ("lora-fa", "lora")
#: Of this the paper says nothing: the engines that answer at once draw it.
UNSAID = ("lora", paper.LONG)
#: Blocks whose linear layers are adapted, of the 32 of Llama2-7B.
BLOCKS = (1, 8, 16, 24, 32)
FROM_THE_LAST = "lora-fa from the last block on"


def long_run(method: str, seq: int, assumption: Assumption) -> RunSpec:
    """Return a run of Fig. 4(a): Llama2-7B, one sequence, rank 64 on all linear layers, FlashAttention."""
    run = RunSpec(
        model=load_model(paper.FIGURE_4_MODEL), bs=1, seq=seq, attn="flash",
        method=MethodSpec(name=method, rank=paper.FIGURE_4_RANK),
    )  # fmt: skip
    return run.replace(**assumption.options)


def sequences(panel: Panel) -> Examined:
    """Answer what Fig. 4(a) says."""
    short, long = load_device(paper.SHORT_CARD), load_device(paper.LONG_CARD)
    found: list[Answer] = []
    points: list[Point] = []
    for assumption in ASSUMPTIONS:
        for statement, method, seq, card, wanted in (
            (paper.FITS_24, "lora-fa", paper.SHORT, short, True),
            (paper.FAILS_24, "lora", paper.SHORT, short, False),
            (paper.FITS_40, "lora-fa", paper.LONG, long, True),
        ):
            subject = f"{method}, {seq:,} tokens, {card.name}"
            replies = panel.ask(long_run(method, seq, assumption), card)
            expected = "fits" if wanted else "out of memory"
            found += answers(statement, subject, assumption.name, expected, replies, fits(wanted))
        points += [
            Point(assumption=assumption.name, prediction=reply.prediction, x=seq)
            for method in METHODS
            for seq, card in ((paper.SHORT, short), (paper.LONG, long))
            for reply in panel.ask(long_run(method, seq, assumption), card, quick=(method, seq) == UNSAID).values()
            if reply.prediction is not None
        ]
    return with_reasons(
        Examined(
            title="Fig. 4(a): long sequences on small cards", answers=tuple(found), points=tuple(points),
            figure="fig4a", against="tokens",
            levels=tuple(Level(name=card.name, nbytes=card.total_bytes) for card in (short, long)),
            statements=(paper.FITS_24, paper.FAILS_24, paper.FITS_40),
            setting="Llama2-7B, batch 1, rank 64 on all linear layers, bf16 weights, FlashAttention, no checkpointing",
        )
    )  # fmt: skip


# -- layers and ranks ------------------------------------------------------------------------------------------------


def sweep_run(method: str, rank: int, blocks: range | None = None) -> RunSpec:
    """Return a run of Fig. 4(b): Llama2-7B, 1 x 1,024, AdamW, adapters on the linear layers of some blocks, or all."""
    model = load_model(paper.FIGURE_4_MODEL)
    adapted = None if blocks is None or len(blocks) == model.num_layers else tuple(blocks)
    return RunSpec(
        model=model, bs=paper.SWEEP_BATCH, seq=paper.SWEEP_SEQUENCE, attn="flash", optimizer="adamw",
        method=MethodSpec(name=method, rank=rank, layers=adapted),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """One of the two sweeps of Fig. 4(b)."""

    statement: Statement
    title: str
    figure: str
    against: str
    what: str
    """A subject, with braces for the value that is swept."""
    setting: str
    for_all: Sequence[int]
    """Values of which every engine is asked where the method is LoRA-FA, of which the paper speaks."""


def ranks(panel: Panel) -> Examined:
    """Answer what Fig. 4(b) says of ranks."""
    sweep = _Sweep(
        statement=paper.RANK, title="Fig. 4(b): memory against the rank", figure="fig4b-rank", against="rank",
        what="rank {}", setting="all linear layers", for_all=(1, 64, 128),
    )  # fmt: skip
    runs = {method: [(rank, sweep_run(method, rank)) for rank in paper.RANKS] for method in METHODS}
    return _swept(panel, sweep, runs)


def layers(panel: Panel) -> Examined:
    """Answer what Fig. 4(b) says of the number of adapted layers."""
    depth = load_model(paper.FIGURE_4_MODEL).num_layers
    sweep = _Sweep(
        statement=paper.LAYERS, title="Fig. 4(b): memory against the adapted layers", figure="fig4b-layers",
        against=f"adapted blocks of {depth}", what=f"{{}} of {depth} blocks", setting=f"rank {paper.SWEEP_RANK}",
        for_all=(1, depth),
    )  # fmt: skip

    def run(method: str, blocks: range) -> RunSpec:
        return sweep_run(method, paper.SWEEP_RANK, blocks)

    runs = {method: [(n, run(method, range(n))) for n in BLOCKS] for method in METHODS}
    runs[FROM_THE_LAST] = [(n, run("lora-fa", range(depth - n, depth))) for n in (1, depth)]
    return _swept(panel, sweep, runs)


def _swept(panel: Panel, sweep: _Sweep, runs: Mapping[str, Sequence[tuple[int, RunSpec]]]) -> Examined:
    replies = {
        name: [(x, panel.ask(run, quick=name == "lora" or x not in sweep.for_all)) for x, run in of_name]
        for name, of_name in runs.items()
    }
    found = [
        answer for name, of_name in replies.items() for answer in _growths(sweep.statement, name, of_name, sweep.what)
    ]
    points = tuple(
        Point(assumption=DEFAULT.name, prediction=reply.prediction, x=x)
        for method in METHODS
        for x, of_engines in replies[method]
        for reply in of_engines.values()
        if reply.prediction is not None
    )
    return with_reasons(
        Examined(
            title=sweep.title, statements=(sweep.statement,), answers=tuple(found), points=points, figure=sweep.figure,
            against=sweep.against,
            setting=f"Llama2-7B, 1 x 1,024 tokens, {sweep.setting}, bf16 weights, FlashAttention, no checkpointing, "
            f"AdamW; {DEFAULT.name}. Peak allocated, and what it has grown since the first row; the simulation is "
            "asked of some rows",
        )
    )  # fmt: skip


def _growths(
    statement: Statement, method: str, replies: Sequence[tuple[int, dict[str, Reply]]], what: str
) -> Iterator[Answer]:
    """Yield the peak at each step of a sweep; the last one is held against the paper, where it speaks of the method."""
    first = replies[0][1]
    for x, of_engines in replies:
        is_last = x == replies[-1][0] and method.startswith("lora-fa")
        expected = f"no more than {paper.SIGNIFICANT:.0%} above the first" if is_last else "-"
        yield from answers_of_two(
            statement, f"{method}, {what.format(x)}", DEFAULT.name, expected, (of_engines, first), _growth(is_last)
        )


def _growth(is_judged: bool) -> Callable[[Prediction, Prediction], Told]:
    def tell(here: Prediction, first: Prediction) -> Told:
        size, least = here.memory.peak_allocated_bytes or 0, first.memory.peak_allocated_bytes or 1
        share = size / least - 1
        text = f"{format_gib(size)} GiB ({share:+.1%})"
        return Told(text, size, share <= paper.SIGNIFICANT if is_judged else None)

    return tell
