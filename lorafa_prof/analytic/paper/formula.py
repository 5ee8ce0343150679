"""Formulas as data: sums of products that print themselves and evaluate, so that text and number cannot disagree.

    >>> f = Formula.parse("2bsd+2bsr")
    >>> str(f), f.evaluate({"b": 8, "s": 1024, "d": 4096, "r": 64})
    ('2bsd+2bsr', Fraction(68157440, 1))

A term is a coefficient, symbols written next to each other, and perhaps a division: "12bsd", "9bhss", "2r²", "P/64".
A symbol is one letter or a sum over the linear layers of a block: Σm, Σk or Σmk. A ² squares the symbol before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

_SYMBOL = re.compile(r"(Σmk|Σm|Σk|[A-Za-z])(²?)")
_TERM = re.compile(r"([+-]?)(\d*)((?:(?:Σmk|Σm|Σk|[A-Za-z])²?)*)(?:/(\d+))?")


@dataclass(frozen=True)
class Term:
    """A coefficient times a product of symbols."""

    coefficient: Fraction
    text: str
    """The symbols as written: "bhss"."""

    @property
    def factors(self) -> tuple[str, ...]:
        """The symbols of the product, sorted, a squared one twice."""
        return tuple(sorted(name for name, square in _SYMBOL.findall(self.text) for _ in range(2 if square else 1)))

    def __str__(self) -> str:
        numerator, denominator = abs(self.coefficient.numerator), self.coefficient.denominator
        shown = f"{numerator}" if numerator != 1 or not self.text else ""
        return f"{shown}{self.text}" + (f"/{denominator}" if denominator != 1 else "")


@dataclass(frozen=True)
class Formula:
    """A sum of terms, like terms merged, in the order in which they were first written."""

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Return the formula that `text` writes, as `str` would print it.

        Raises:
            ValueError: not a sum of products.
        """
        terms: list[Term] = []
        position = 0
        compact = text.replace(" ", "")
        while position < len(compact):
            match = _TERM.match(compact, position)
            if not match or match.end() == position or (position and not match.group(1)):
                raise ValueError(f"not a formula: {text!r} from {compact[position:]!r} on")
            sign, number, symbols, divisor = match.groups()
            if not number and not symbols:
                raise ValueError(f"a term without coefficient and symbols in {text!r}")
            coefficient = Fraction(int(number or 1), int(divisor or 1))
            terms.append(Term(-coefficient if sign == "-" else coefficient, symbols))
            position = match.end()
        return cls.of(terms)

    @classmethod
    def of(cls, terms: list[Term]) -> Formula:
        """Return the sum of `terms` with like terms merged and empty ones dropped."""
        merged: dict[tuple[str, ...], Term] = {}
        for term in terms:
            first = merged.get(term.factors)
            both = Term(first.coefficient + term.coefficient, first.text) if first else term
            merged[term.factors] = both
        return cls(tuple(term for term in merged.values() if term.coefficient))

    def __add__(self, other: Formula) -> Formula:
        return Formula.of([*self.terms, *other.terms])

    def __mul__(self, other: Formula | int) -> Formula:
        factor = Formula.parse(str(other)) if isinstance(other, int) else other
        return Formula.of(
            [Term(a.coefficient * b.coefficient, _joined(a.text, b.text)) for a in self.terms for b in factor.terms]
        )

    def substitute(self, **formulas: Formula) -> Formula:
        """Return this formula with symbols that stand alone in their term ("4T") replaced by whole formulas."""
        result = Formula(())
        for term in self.terms:
            inner = formulas.get(term.text)
            result += inner * Formula((Term(term.coefficient, ""),)) if inner is not None else Formula((term,))
        return result

    def evaluate(self, values: Mapping[str, int]) -> Fraction:
        """Return the value with these numbers for the symbols, exactly.

        Raises:
            KeyError: a symbol has no number.
        """
        total = Fraction(0)
        for term in self.terms:
            product = term.coefficient
            for name in term.factors:
                product *= values[name]
            total += product
        return total

    def symbols(self) -> frozenset[str]:
        """Return the names of the symbols."""
        return frozenset(name for term in self.terms for name in term.factors)

    def __str__(self) -> str:
        text = "".join(f"{'-' if term.coefficient < 0 else '+'}{term}" for term in self.terms)
        return text.removeprefix("+") or "0"


def _joined(left: str, right: str) -> str:
    """Write two products as one, sums last: Σm before k would read as Σmk."""
    symbols = [name + square for name, square in _SYMBOL.findall(left + " " + right)]
    return "".join(sorted(symbols, key=lambda symbol: symbol.startswith("Σ")))
