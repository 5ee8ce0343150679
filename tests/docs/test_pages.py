"""A page for each command, each option on a page, help with examples, and links that lead somewhere."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

import click
import pytest

from lorafa_prof.cli import main
from lorafa_prof.cli.program import COMMANDS
from tests.docs.pages import PAGES, ROOT

#: The page of `paper` is what the command writes; how it is called stands on another.
PAGE = {"paper": "paper-command"}
#: Options of other programs that the pages speak of.
OF_OTHERS = {"--nproc-per-node", "--hypothesis-profile", "--max-batch", "--constraint"}


def command_of(name: str) -> click.Command:
    command: click.Command = importlib.import_module(f"lorafa_prof.cli.{name}").command
    return command


def options_of(name: str) -> Iterator[tuple[str, ...]]:
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option) and "-q" not in parameter.opts:
            yield tuple(parameter.opts + parameter.secondary_opts)


def text_of(name: str) -> str:
    return (ROOT / "docs" / f"{PAGE.get(name, name)}.md").read_text("utf-8")


def names(text: str, options: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) for option in options)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_page_with_each_of_its_options(name: str) -> None:
    """Options that it shares with predict are on predict's page."""
    text, shared = text_of(name), set(options_of("predict"))
    assert f"lorafa-prof {name} " in text
    missing = [options for options in options_of(name) if not names(text, options)]
    if name == "predict":
        assert missing == []
    left = [options for options in missing if options not in shared and not _is_axis(options, shared)]
    assert left == []


def _is_axis(options: tuple[str, ...], shared: set[tuple[str, ...]]) -> bool:
    """Whether it is a run option by the name that a grid gives it."""
    return any(set(options) <= set(known) for known in shared)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_index_names_each_command(name: str) -> None:
    """docs/README.md leads to every command's page."""
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    assert f"({PAGE.get(name, name)}.md)" in index


def test_the_index_names_each_page() -> None:
    """No page that nobody finds."""
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = [path.name for path in PAGES if path.parent.name == "docs" and path.name != "README.md"]
    assert [name for name in pages if f"({name})" not in index] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of which begins with the command."""
    assert main([name, "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("Examples:\n")
    assert re.match(rf"\s+(torchrun .*|lorafa-prof {name})", examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: object) -> None:
    """Relative links and pictures are files that are there."""
    path = ROOT / str(page)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_flags_are_options_of_some_command() -> None:
    """What stands in backquotes as a flag is one."""
    known = {"--help", "--version", "--quiet"} | OF_OTHERS
    known |= {option for name in COMMANDS for options in options_of(name) for option in options}
    for path in PAGES:
        for quoted in re.findall(r"`([^`\n]+)`", path.read_text("utf-8")):
            for flag in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", quoted):
                assert flag in known, f"{path.name}: {flag}"
