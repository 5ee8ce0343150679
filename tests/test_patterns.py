"""Patterns of module names: as Python's own matcher has them, whatever they are, and soon."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from lorafa_prof.errors import LorafaProfError
from lorafa_prof.patterns import LONGEST, Pattern, is_pattern

NAMES = (
    "model.layers.0.self_attn.q_proj", "model.layers.17.mlp.down_proj", "transformer.h.3.attn.c_attn", "lm_head",
    "encoder.block.0.layer.0.SelfAttention.q", "aab", "a.b", "0", "", "Ärger_1.x",
)  # fmt: skip
#: Pieces of which any pattern that is read can be made; none of them is slow for Python's own matcher.
_PIECES = st.sampled_from(
    [
        *"ab.01q", r"\.", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[ab]", "[^ab.]", r"[\d_]", "[a-z]", r"[^\W\d]",
        "(a|b|)", "(?:layers|h)", "(q|k|v)_proj", "^", "$", r"\b", r"\B", "(?=a)", "(?!a)", "(?!.*mlp)", "model", "_",
    ]
)  # fmt: skip
_REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "{2}", "{0,2}", "{1,}"])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """A pattern, with one repeat within another at most, so that Python's own matcher is done soon."""
    pieces = [draw(_PIECES) + draw(_REPEATS) for _ in range(draw(st.integers(0, 5)))]
    text = "".join(pieces)
    return f"({text})?|{draw(_PIECES)}.*" if draw(st.booleans()) else text


@settings(max_examples=400, deadline=None)
@given(text=patterns(), name=st.sampled_from(NAMES) | st.text("ab.01q_", max_size=8))
def test_a_pattern_matches_as_python_has_it(text: str, name: str) -> None:
    """Whole names, by what `re.fullmatch` says of them."""
    try:
        expected = re.fullmatch(text, name) is not None
    except re.error:
        with pytest.raises(LorafaProfError, match="is no regular expression"):
            Pattern(text)
        return
    assert Pattern(text).matches(name) == expected


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+b", "(a*)*b", "(a|a)*b", "((a+)+)+b", "(.*)*x", "((((((.*)*)*)*)*)*)*x", "(.*.*.*.*.*.*.*.*.*.*)*x",
        "(a?){500}a{500}", "((a{0,1000}){0,1000}){0,1000}b", "(" * 300 + "a*" + ")*" * 300 + "b",
        "(?=(.*)*x)" * 20, "(a{4000000000}){4000000000}", "(?!" * 90 + "(.*)*x" + ")" * 90,
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_no_pattern_takes_long(text: str) -> None:
    """Repeats within repeats have Python's own matcher busy for years; here there is an answer, or a refusal."""
    began = time.monotonic()
    assert answer(text, ("a" * 60, "model.layers.0.self_attn.q_proj") * 100) in ("", "refused")
    assert time.monotonic() - began < 30


def answer(text: str, names: Sequence[str]) -> str:
    """Return the first name that a pattern matches, or how it is refused."""
    try:
        pattern = Pattern(text)
        return next((name for name in names if pattern.matches(name)), "")
    except LorafaProfError:
        return "refused"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a" * (LONGEST + 1), "1,001 characters; up to 1,000 are read"),
        ("(", "is no regular expression: missing"),
        ("*a", "is no regular expression: nothing to repeat"),
        ("a{99999999999999999999}", "is no regular expression"),
        ("(" * 499 + ")" * 499, "nested too deeply|groups so deep"),
        ("(a)\\1", "references to groups"),
        ("(?<=a)b", "looks behind"),
        ("(?i)Q_PROJ", "flags are not read"),
        ("(?i:Q)_PROJ", "flags are not read"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_read_is_said(text: str, words: str) -> None:
    """No regular expression, too long a one, or one that needs more than a set of places."""
    with pytest.raises(LorafaProfError, match=words) as error:
        Pattern(text).matches("ab")
    assert error.value.exit_code == 2
    assert len(str(error.value)) < 400


def test_which_texts_are_patterns() -> None:
    """A dot is in many names, and makes no pattern."""
    assert not any(map(is_pattern, ["all-linear", "q_proj,v_proj", "layers.0.self_attn.q_proj", "qv", ""]))
    assert all(map(is_pattern, [r".*\.q_proj", "(q|v)_proj", r"model.layers.[\d]+.q_proj", "a$", "^a"]))
