"""The figures of the running text: a terabyte, 130 GB, fewer bits, 18 GB, 8 KB, half of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lorafa_prof.analytic.paper import statements as paper
from lorafa_prof.catalog import load_device, load_model
from lorafa_prof.claims.asking import ASSUMPTIONS, DEFAULT, Panel, Reply, Told, answers, answers_of_two
from lorafa_prof.claims.figure_2 import OF_LORA_FA, run_of
from lorafa_prof.claims.reasons import with_reasons
from lorafa_prof.results import Prediction
from lorafa_prof.results.claims import Answer, Examined
from lorafa_prof.specs import MethodSpec, RunSpec
from lorafa_prof.units import format_gb

#: The share within which a figure that the paper rounds is the same.
ROUNDED = 0.02
#: How full fine-tuning of the 70B model may have been set up.
_WHOLE_MODEL: Mapping[str, dict[str, object]] = {
    "fp32 weights": {"dtype": "fp32", "amp": True},
    "pure bf16": {},
}


def text_figures(panel: Panel) -> Examined:
    """Answer what the running text says in numbers."""
    found = [*_terabyte(panel), *_weights(panel), *_activations(panel), *_inverse(panel), *_half(panel)]
    said = (paper.TERABYTE, paper.WEIGHTS_65B, paper.FEWER_BITS, paper.SAVING_C3, paper.INVERSE, paper.HALF)
    return with_reasons(
        Examined(
            title="Figures of the running text", statements=said, answers=tuple(found),
            setting="What the engines count in runs of the models named; decimal units, as the paper has them.",
        )
    )  # fmt: skip


def _small_run(model: str, method: str, **options: object) -> RunSpec:
    return RunSpec(model=load_model(model), method=MethodSpec(name=method), bs=1, seq=128, attn="flash").replace(
        **options
    )


def _terabyte(panel: Panel) -> Iterator[Answer]:
    for name, options in _WHOLE_MODEL.items():
        replies = panel.ask(_small_run("llama3-70b", "full", **options))
        yield from answers(paper.TERABYTE, "full", name, "> 1 TB", replies, _states)


def _states(prediction: Prediction) -> Told:
    memory = prediction.memory
    size = (memory.weights_bytes or 0) + (memory.trained_gradients_bytes or 0) + (memory.optimizer_bytes or 0)
    each = size / prediction.parameters["total"]
    text = f"{size / 1e12:.3f} TB, {each:.1f} bytes a parameter"
    return Told(text, size, size > (paper.TERABYTE.value or 0))


def _weights(panel: Panel) -> Iterator[Answer]:
    plain = panel.ask(_small_run("llama-65b", "lora-fa"))
    yield from answers(paper.WEIGHTS_65B, "llama-65b, 16 bits", DEFAULT.name, "130 GB", plain, _as_stated)
    for name, share, bits in (("int8", 1 / 2, "8 bits"), ("nf4", 1 / 4, "4 bits")):
        fewer = panel.ask(_small_run("llama-65b", "lora-fa", quant=name))
        expected = f"1/{round(1 / share)} of that"
        yield from answers_of_two(
            paper.FEWER_BITS, f"llama-65b, {bits} ({name})", DEFAULT.name, expected, (fewer, plain), _share(share)
        )


def _as_stated(prediction: Prediction) -> Told:
    size, said = prediction.memory.weights_bytes or 0, paper.WEIGHTS_65B.value or 1
    return Told(f"{format_gb(size)} GB", size, abs(size / said - 1) <= ROUNDED)


def _share(said: float) -> Callable[[Prediction, Prediction], Told]:
    def tell(fewer: Prediction, plain: Prediction) -> Told:
        size = fewer.memory.weights_bytes or 0
        share = size / (plain.memory.weights_bytes or 1)
        return Told(f"{format_gb(size)} GB, {share:.3f} of that", share, abs(share / said - 1) <= ROUNDED)

    return tell


def _activations(panel: Panel) -> Iterator[Answer]:
    for assumption in ASSUMPTIONS:
        for method in OF_LORA_FA:
            pair = _replies(panel, run_of("lora", assumption), run_of(method, assumption))
            yield from answers_of_two(paper.SAVING_C3, f"lora less {method}", assumption.name, ">= 18 GB", pair, _saved)


def _saved(lora: Prediction, lora_fa: Prediction) -> Told:
    size = (lora.memory.saved_activations_bytes or 0) - (lora_fa.memory.saved_activations_bytes or 0)
    return Told(f"{format_gb(size)} GB", size, size >= (paper.SAVING_C3.value or 0))


def _inverse(panel: Panel) -> Iterator[Answer]:
    """What is kept of the inverse is what an optimizer keeps more than AdamW; PEFT's computes it anew in each step."""
    for method in OF_LORA_FA:
        runs = [run_of(method, DEFAULT).replace(optimizer=name) for name in ("auto", "adamw")]
        yield from answers_of_two(
            paper.INVERSE, f"{method}: its optimizer less AdamW", DEFAULT.name, "about 8 KB a layer",
            _replies(panel, *runs), _kept,
        )  # fmt: skip


def _kept(own: Prediction, adamw: Prediction) -> Told:
    size = (own.memory.optimizer_bytes or 0) - (adamw.memory.optimizer_bytes or 0)
    return Told(f"{size:,} B in all layers", size, None)


def _half(panel: Panel) -> Iterator[Answer]:
    lora = run_of("lora", DEFAULT)
    for rank, share in ((64, 0.5), (128, 1.0)):
        run = run_of("lora-fa", DEFAULT).replace(method=MethodSpec(name="lora-fa", rank=rank))
        subject, expected = f"lora-fa at {rank} to lora at 64", f"{share:g}"
        yield from answers_of_two(paper.HALF, subject, "any", expected, _replies(panel, run, lora), _ratio(share))


def _ratio(said: float) -> Callable[[Prediction, Prediction], Told]:
    def tell(lora_fa: Prediction, lora: Prediction) -> Told:
        trained = lora_fa.parameters["trainable"]
        share = trained / lora.parameters["trainable"]
        return Told(f"{share:.3f}: {trained:,}", share, abs(share / said - 1) <= ROUNDED)

    return tell


def _replies(panel: Panel, first: RunSpec, second: RunSpec) -> tuple[dict[str, Reply], dict[str, Reply]]:
    card = load_device(paper.FIGURE_2_CARD)  # as Fig. 2(a) asks them
    return panel.ask(first, card, timed=True), panel.ask(second, card, timed=True)
