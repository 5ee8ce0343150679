"""Which layers have adapters: what --layers may say, what it means, and what is refused in which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafa_prof.catalog import load_model
from lorafa_prof.errors import BadInputError, ContradictionError, UnsupportedError
from lorafa_prof.layers import parse_layers, share_spelled, spelled
from lorafa_prof.results.plain import run_from_json, run_to_json
from lorafa_prof.runs import run_spec
from lorafa_prof.specs import MethodSpec, RunnableModel, RunSpec


@pytest.mark.parametrize(
    ("text", "total", "meant"),
    [
        ("all", 32, None),
        ("32", 32, None),
        ("100%", 32, None),
        ("0-31", 32, None),
        ("8", 32, tuple(range(24, 32))),
        ("1", 32, (31,)),
        ("25%", 32, tuple(range(24, 32))),
        ("50 %", 32, tuple(range(16, 32))),
        ("12.5%", 32, tuple(range(28, 32))),
        ("50%", 5, (2, 3, 4)),
        ("30%", 5, (3, 4)),
        ("0-15", 32, tuple(range(16))),
        ("0,8,16", 32, (0, 8, 16)),
        (" 16, 0-1 ,8 ", 32, (0, 1, 8, 16)),
        ("8-8", 32, (8,)),
        ("8,8-9", 32, (8, 9)),
    ],
)
def test_what_a_text_means(text: str, total: int, meant: tuple[int, ...] | None) -> None:
    """A number and a share are the last layers; numbers in lists and ranges are counted from 0."""
    assert parse_layers(text, total, "m") == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "leaves no layer to adapt: name 1 to 32, or all"),
        ("40", "m has 32 layers"),
        ("0%", "none of the 32 layers of m; one of them is 3.12%"),
        ("1%", "none of the 32 layers"),
        ("150%", "100% at most"),
        ("0,40", "m has no layer 40: its 32 layers are numbered 0 to 31"),
        ("30-32", "m has no layer 32"),
        ("15-0", "reversed: write 0-15"),
        ("half", "'half' names no layers: write all, 8 (the last 8)"),
        ("", "names no layers"),
        ("8,", "names no layers"),
        ("-1", "names no layers"),
        ("25%,50%", "one value at a time"),
        ("9" * 100, "names no layers"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    """With the forms that there are, or the layers."""
    with pytest.raises(BadInputError) as error:
        parse_layers(text, 32, "m")
    assert said in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2, 8), (3, 5, 7), tuple(range(32))])
def test_ranges_are_read_back(layers: tuple[int, ...]) -> None:
    """What is written of numbers names the same ones; one alone would be a number of layers."""
    text = spelled(layers)
    assert (parse_layers(text, 33, "m") if len(layers) > 1 else (int(text),)) == layers


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("all", (100.0, "last")), ("16-31 of 32", (50.0, "last")), ("31 of 32", (3.125, "last")),
        ("0-7 of 32", (25.0, "first")), ("0 of 4", (25.0, "first")), ("0,31 of 32", None), ("3-7 of 32", None),
        ("0-7", None), ("", None), ("0-0 of 0", None),
    ],
)  # fmt: skip
def test_shares_of_tables(text: str, share: tuple[float, str] | None) -> None:
    """A table's text tells the share where it is one of the first or of the last layers."""
    assert share_spelled(text) == share


# -- runs ------------------------------------------------------------------------------------------------------------


def run_of(layers: str, model: str = "llama2-7b", method: str = "lora", targets: str = "all-linear") -> RunSpec:
    return run_spec(load_model(model), method, rank=8, targets=targets, dropout=0.0, layers=layers, seq=64)


def test_a_run_says_its_layers() -> None:
    """As numbers in results, as ranges with the model's depth in tables; all layers are all, however they are named."""
    run = run_of("50%")
    assert run.method.layers == tuple(range(16, 32))
    assert run.adapted_layers == "16-31 of 32"
    assert run_of("100%") == run_of("0-31") == run_of("all")


def test_results_carry_the_layers() -> None:
    """In JSON and back; a file from before there was a choice is of all layers."""
    run = run_of("0,8")
    data = run_to_json(run)
    assert data["method"]["layers"] == [0, 8]
    assert run_from_json(data) == run
    del data["method"]["layers"]
    assert run_from_json(data) == run_of("all")
    data["method"]["layers"] = [0, 99]
    with pytest.raises(BadInputError, match="no layer 99"):
        run_from_json(data)
    data["method"]["layers"] = ["0"]
    with pytest.raises((BadInputError, TypeError)):
        run_from_json(data)


@pytest.mark.parametrize("layers", [(), (3, 2), (1, 1), (-1,), (True,)])
def test_only_rising_numbers_are_layers(layers: Any) -> None:
    """Whoever makes the method by hand is told so."""
    with pytest.raises(BadInputError):
        MethodSpec(name="lora", layers=layers)


def test_full_fine_tuning_has_no_adapters() -> None:
    """None that some layers could have."""
    with pytest.raises(ContradictionError, match="no adapters"):
        run_of("8", method="full")
    assert run_of("all", method="full").method.layers is None


def test_layers_are_named_in_one_place() -> None:
    """PEFT adapts a target that names its layer whatever the chosen layers are."""
    with pytest.raises(ContradictionError, match=r"layers\.3\.self_attn\.q_proj"):
        run_of("8", targets="layers.3.self_attn.q_proj")


def test_stacks_of_different_length() -> None:
    """Layers of both stacks of an encoder-decoder have one number: the last ones of each would have two."""
    even = load_model("t5-base")
    assert run_spec(even, "lora", rank=8, targets="qv", dropout=0.0, layers="25%", seq=64).method.layers == (9, 10, 11)
    uneven = replace(even, num_decoder_layers=6)
    with pytest.raises(BadInputError, match="its encoder and its decoder differ in length"):
        run_spec(uneven, "lora", rank=8, targets="qv", dropout=0.0, layers="25%", seq=64)
    run = run_spec(uneven, "lora", rank=8, targets="qv", dropout=0.0, layers="0-3", seq=64)
    assert run.adapted_layers == "0-3 of 12"


def test_a_model_of_unknown_depth() -> None:
    """A share of nobody knows how many layers is refused."""
    model = RunnableModel(name="m", architecture="x", task="causal-lm", built_as="X", vocab_size=9, config={})
    with pytest.raises(UnsupportedError, match="does not say how many layers"):
        run_spec(model, "lora", rank=8, targets="qv", dropout=0.0, layers="25%", seq=64)
    deep = replace(model, depth=4)
    run = run_spec(deep, "lora", rank=8, targets="qv", dropout=0.0, layers="25%", seq=64)
    assert run.adapted_layers == "3 of 4"
