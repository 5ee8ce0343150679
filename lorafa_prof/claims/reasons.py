"""Why an engine's answer is not the paper's: for each statement that differs, where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorafa_prof.results.claims import Answer, Examined

#: By statement, then by assumption or subject as answers name them; "" is for all others.
REASONS: Mapping[str, Mapping[str, str]] = {}


def reason_of(answer: Answer) -> str | None:
    """Return why an answer is not the paper's; None where no reason is known."""
    of_statement = REASONS.get(answer.statement, {})
    for key in (answer.subject, answer.assumption, ""):
        if key in of_statement:
            return of_statement[key]
    return None


def with_reasons(examined: Examined) -> Examined:
    """Return the group with a remark for each difference, and for each refusal of an engine."""
    differing = [answer for answer in examined.answers if answer.agrees is False]
    reasons = [reason for reason in map(reason_of, differing) if reason is not None]
    refusals = [f"{answer.engine}, {answer.subject}: {answer.refusal}" for answer in examined.answers if answer.refusal]
    return replace(examined, remarks=tuple(dict.fromkeys((*examined.remarks, *reasons, *refusals))))
