"""The page on which the LoRA-FA paper's figures and claims stand beside what the engines say, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lorafa_prof.reports.prediction import method_name
from lorafa_prof.reports.table import Cell, Scalar, Table, figures, render_markdown, words
from lorafa_prof.results.claims import CERTAINTY, Answer, Assumption, Examined, Statement
from lorafa_prof.specs import METHODS

_METHOD = re.compile(rf"(?<![\w-])({'|'.join(sorted(METHODS, key=len, reverse=True))})(?![\w-])")
VERDICTS: Mapping[bool | None, str] = {True: "agrees", False: "differs", None: "-"}
NOT_MODELLED = "not modelled"


def paper_page(
    groups: Sequence[Examined],
    tables: Sequence[Table],
    *,
    assumptions: Sequence[Assumption],
    versions: Mapping[str, Mapping[str, str]],
    pictures: Mapping[str, str],
    command: str,
) -> str:
    """Return the page.

    Args:
        groups: what was examined, in order.
        tables: the paper's own tables, computed.
        assumptions: under which it was.
        versions: of the libraries, by engine.
        pictures: paths of the figures beside the page, by name.
        command: what writes the page.
    """
    parts = [
        "# The LoRA-FA paper, figure by figure\n",
        _introduction(assumptions, versions, command),
        _summary(groups, list(versions)),
        *(_group(group, list(versions), pictures) for group in groups),
        "## The paper's tables, computed\n",
        *map(render_markdown, tables),
    ]
    return "\n".join(parts)


def _introduction(assumptions: Sequence[Assumption], versions: Mapping[str, Mapping[str, str]], command: str) -> str:
    certain = "; ".join(f"*{word}*: {meaning}" for word, meaning in CERTAINTY.items())
    first = (
        "What the LoRA-FA paper (arXiv 2308.03303) says of memory and arithmetic, and what the engines say of the same "
        f"runs. Every figure of ours is computed when this page is written, by `{command}`; none was measured on a "
        f"GPU. Each number of the paper's says how sure it is: {certain}."
    )
    ways = (
        "The paper does not say in which dtype the adapters ran, and much depends on it. Three ways are held against "
        "it, all over bf16 weights:"
    )
    units = (
        "GiB are 2³⁰ bytes, GB 10⁹. The closed forms know what is allocated, the simulation also what the caching "
        "allocator reserves for it; the CUDA context counts on cards where it was measured, which the A800 is not."
    )
    lines = [first, "", ways, ""]
    lines += [f"- **{each.name}**: {each.means}." for each in assumptions]
    lines += ["", "The engines:", ""]
    lines += [f"- **{name}**, {_releases(of)}" for name, of in versions.items()]
    lines += ["", units]
    return "\n".join(lines) + "\n"


def _releases(versions: Mapping[str, str]) -> str:
    told = [f"{library} {release}" for library, release in sorted(versions.items()) if library != "engine"]
    return f"for {', '.join(told)}" if told else "which answered nothing that is drawn"


# -- the summary -----------------------------------------------------------------------------------------------------


def _summary(groups: Sequence[Examined], engines: Sequence[str]) -> str:
    rows = []
    for group in groups:
        for statement in group.statements:
            own = [answer for answer in group.answers if answer.statement == statement.key]
            rows.append(
                (statement.says, statement.where, statement.certainty, *(_verdict(own, engine) for engine in engines))
            )
    table = Table(
        title="What agrees",
        columns=words("the paper says", "where", "certainty", *engines),
        rows=tuple(rows),
        notes=("A method that an engine does not model counts neither way; the tables below name it.",),
    )
    return render_markdown(table).replace("###", "##", 1)


def _verdict(answers: Sequence[Answer], engine: str) -> str:
    """Return in words under which assumptions an engine says what the paper says."""
    judged: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.engine == engine and answer.agrees is not None:
            judged.setdefault(answer.assumption, []).append(answer)
    if not judged:
        return "cannot be told"
    agreeing = [name for name, found in judged.items() if all(answer.agrees for answer in found)]
    differing = [_exceptions(name, found) for name, found in judged.items() if name not in agreeing]
    if not differing:
        return VERDICTS[True]
    if not agreeing and all("(" not in text for text in differing):
        return VERDICTS[False]
    sides = ((VERDICTS[True], agreeing), (VERDICTS[False], differing))
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in sides if names)


def _exceptions(assumption: str, answers: Sequence[Answer]) -> str:
    """Return the name of an assumption, with what differs under it where that is the lesser part."""
    wrong = [_shown(answer.subject) for answer in answers if not answer.agrees]
    return f"{assumption} ({', '.join(wrong)})" if 2 * len(wrong) <= len(answers) else assumption


# -- one group -------------------------------------------------------------------------------------------------------


def _group(group: Examined, engines: Sequence[str], pictures: Mapping[str, str]) -> str:
    parts = [f"## {group.title}", "", f"{group.setting}.".replace("..", "."), ""]
    parts += [_statement(statement) for statement in group.statements]
    if group.figure in pictures:
        parts += ["", f"![{group.title}]({pictures[group.figure]})"]
    parts.append("")
    for statement in group.statements:
        own = [answer for answer in group.answers if answer.statement == statement.key]
        parts.append(render_markdown(_table(statement, own, engines)))
    if group.remarks:
        parts += ["**Why, where it differs or is missing:**", "", *(f"- {each}" for each in group.remarks), ""]
    return "\n".join(parts)


def _statement(statement: Statement) -> str:
    sentences = [statement.says, *filter(None, [statement.assumed.removesuffix(".")])]
    return f"- {statement.where} (*{statement.certainty}*): {'. '.join(sentences)}."


def _table(statement: Statement, answers: Sequence[Answer], engines: Sequence[str]) -> Table:
    places = list(dict.fromkeys((answer.assumption, answer.subject, answer.expected) for answer in answers))
    by_place = {(a.assumption, a.subject, a.engine): a for a in answers}
    rows: list[tuple[Cell | Scalar, ...]] = []
    for assumption, subject, expected in places:
        cells: list[Cell | Scalar] = []
        for engine in engines:
            answer = by_place.get((assumption, subject, engine))
            cells += [_ours(answer), None if answer is None else VERDICTS[answer.agrees]]
        rows.append((assumption, _shown(subject), expected, *cells))
    columns = [column for engine in engines for column in (*figures(engine), *words(" "))]
    return Table(
        title=statement.says[:1].upper() + statement.says[1:],
        columns=(*words("assumption", "of", "paper"), *columns),
        rows=tuple(rows),
        keys=2,
    )


def _ours(answer: Answer | None) -> str | None:
    if answer is None:
        return None
    return NOT_MODELLED if answer.ours is None and answer.refusal else answer.ours


def _shown(text: str) -> str:
    """Return text with methods by the names that papers write."""
    return _METHOD.sub(lambda found: method_name(found.group()), text)
