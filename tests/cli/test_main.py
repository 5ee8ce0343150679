"""The command line as a whole: what it imports, how it fails, what its exit codes say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from lorafa_prof import __version__
from lorafa_prof.cli import program as cli
from lorafa_prof.errors import (
    BadInputError,
    DeviceError,
    LorafaProfError,
    MissingComponentError,
    UnknownNameError,
    UnsupportedError,
)

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "lorafa_prof"]


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    settings: dict[str, object] = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 120, **options}
    return subprocess.run([*PROGRAM, *args], check=False, **settings)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make `lorafa-prof stand-in` call a function."""

    def install(function: Callable[[], object]) -> None:
        module = types.ModuleType("lorafa_prof.cli.stand-in")
        module.command = click.command()(function)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lorafa_prof.cli.stand-in", module)
        monkeypatch.setitem(cli.COMMANDS, "stand-in", "Stands in.")

    return install


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


class TestImports:
    """Starting costs click and the errors; a command costs its own module."""

    @pytest.mark.parametrize("args", [["--help"], ["--version"], ["xyz"], ["predct"]])
    def test_the_group_imports_no_command(self, args: list[str]) -> None:
        """Neither importing the group nor its help or its errors load a command, numpy or rich."""
        probe = (
            "import json, sys\nfrom lorafa_prof.cli import main\n"
            f"main({args!r})\nprint(json.dumps([m for m in sys.modules]))"
        )
        done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, cwd=ROOT)
        loaded = set(json.loads(done.stdout.splitlines()[-1]))
        assert {m for m in loaded if m.startswith("lorafa_prof")} == {
            "lorafa_prof",
            "lorafa_prof.cli",
            "lorafa_prof.cli.program",
            "lorafa_prof.errors",
        }
        assert not {"numpy", "rich"} & loaded

    @pytest.mark.parametrize("name", sorted(cli.COMMANDS))
    def test_every_listed_command_exists_and_has_help(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Each name of the table has its module, whose help works."""
        assert cli.main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: lorafa-prof {name} ")

    def test_rich_is_loaded_for_colour_only(self) -> None:
        """CSV, JSON, Markdown and text without colour do without it."""
        probe = (
            "import sys\nfrom lorafa_prof.cli import main\n"
            "codes = [main(['paper', '--table', 'c3', '--format', f]) for f in ('csv', 'json', 'markdown', 'table')]\n"
            "sys.exit(any(codes) or 'rich' in sys.modules)"
        )
        environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
        done = subprocess.run(
            [sys.executable, "-c", probe], check=False, capture_output=True, cwd=ROOT, env=environment
        )
        assert done.returncode == 0, done.stderr


def test_a_command_does_not_spoil_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    """The module `list` is an attribute of the package once imported; the program goes on using the builtin."""
    for args in (["list", "methods"], ["--help"], ["list", "methods"]):
        assert cli.main(args) == 0
    assert capsys.readouterr().err == ""


class TestHelp:
    """What the group says about itself."""

    def test_help_lists_every_command_with_its_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Names and first words are there, whatever the wrapping."""
        assert cli.main(["--help"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        for name, line in cli.COMMANDS.items():
            assert f"{name} {line}" in out

    def test_python_m(self) -> None:
        """`python -m lorafa_prof` is the same program."""
        done = run("--version")
        assert done.returncode == 0
        assert done.stdout.startswith(f"lorafa-prof, version {__version__}\n")

    def test_completion(self) -> None:
        """The shell's completion asks for names and gets them."""
        environment = {
            **os.environ,
            "_LORAFA_PROF_COMPLETE": "bash_complete",
            "COMP_WORDS": "lorafa-prof pap",
            "COMP_CWORD": "1",
        }
        assert run(env=environment).stdout == "plain,paper\n"


class TestErrors:
    """Every error is one line on stderr and an exit code; stdout stays empty."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (LorafaProfError("base"), 2),
            (BadInputError("no such thing"), 2),
            (UnsupportedError("not modelled"), 2),
            (UnknownNameError("gpu", "rtx409", ["rtx4090"]), 2),
            (MissingComponentError("pip install 'lorafa-prof[torch]'"), 3),
            (DeviceError("no bf16"), 4),
        ],
    )
    def test_our_errors(
        self,
        error: LorafaProfError,
        code: int,
        stand_in: Callable[[Callable[[], object]], None],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The error's text after the program's name, and the error's exit code."""
        stand_in(raising(error))
        assert cli.main(["stand-in"]) == code
        assert capsys.readouterr() == ("", f"lorafa-prof: {error}\n")

    def test_a_message_is_one_line_that_cannot_steer_a_terminal(
        self, stand_in: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Line ends become spaces, control characters and lone surrogates question marks."""
        stand_in(raising(BadInputError("two\nlines \x1b[31m \udc80")))
        assert cli.main(["stand-in"]) == 2
        assert capsys.readouterr().err == "lorafa-prof: two lines ?[31m ?\n"

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (KeyboardInterrupt(), 130, "lorafa-prof: interrupted\n"),
            (click.Abort(), 130, "lorafa-prof: interrupted\n"),
            (click.FileError("x", "gone"), 2, "Error: Could not open file 'x': gone\n"),
            (PermissionError(13, "Permission denied", "run.json"), 2, "lorafa-prof: Permission denied: run.json\n"),
            (OSError(28, "No space left on device"), 2, "lorafa-prof: No space left on device\n"),
            (BrokenPipeError(32, "Broken pipe"), 141, ""),
        ],
    )
    def test_other_ends(
        self,
        error: BaseException,
        code: int,
        said: str,
        stand_in: Callable[[Callable[[], object]], None],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Interruption, the system's refusals and a closed pipe have their own codes; none is a traceback."""
        stand_in(raising(error))
        assert cli.main(["stand-in"]) == code
        assert capsys.readouterr() == ("", said)

    def test_a_bug_keeps_its_traceback(self, stand_in: Callable[[Callable[[], object]], None]) -> None:
        """What nobody foresaw is not dressed up as a user's mistake."""
        stand_in(raising(ZeroDivisionError("bug")))
        with pytest.raises(ZeroDivisionError):
            cli.main(["stand-in"])

    @pytest.mark.parametrize(("result", "code"), [(None, 0), (1, 1), (0, 0)])
    def test_a_command_may_return_its_exit_code(
        self, result: object, code: int, stand_in: Callable[[Callable[[], object]], None]
    ) -> None:
        """For --check: the verdict is the exit code."""
        stand_in(lambda: result)
        assert cli.main(["stand-in"]) == code

    def test_a_command_may_exit_through_click(self, stand_in: Callable[[Callable[[], object]], None]) -> None:
        """ctx.exit(1) is passed on."""
        stand_in(lambda: click.get_current_context().exit(1))
        assert cli.main(["stand-in"]) == 1

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["predct"], "no such command 'predct'; did you mean predict"),
            (["xyzzy"], "no such command 'xyzzy'. Commands: predict"),
            (["--nonsense"], "--nonsense"),
            (["list", "models", "--nonsense"], "--nonsense"),
            (["list"], "models"),
            (["paper", "--bs", "many"], "'many' is not a valid integer"),
            ([], "Usage: lorafa-prof"),
        ],
    )
    def test_usage_errors(self, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong usage is exit 2, told on stderr."""
        assert cli.main(args) == 2
        out, err = capsys.readouterr()
        assert (out, said in err) == ("", True)


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of POSIX")
class TestStreams:
    """What happens to a result whose reader or disk fails."""

    def test_a_reader_that_went_away_is_no_traceback(self) -> None:
        """Written into a pipe without a reader: exit 141, nothing on stderr."""
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            done = run("list", "models", capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (141, "")

    def test_help_into_a_closed_pipe(self) -> None:
        """Click's own output is treated like a command's."""
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            done = run("--help", capture_output=False, stdout=pipe, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (141, "")

    def test_head(self) -> None:
        """`| head -1` of a result larger than a pipe's buffer gives one line and no noise."""
        command = f"{' '.join(PROGRAM)} paper --format json | head -1"
        done = subprocess.run(
            ["bash", "-c", command], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    @pytest.mark.parametrize("args", [["list", "gpus"], ["list", "gpus", "--format", "json"], ["--help"]])
    def test_a_full_disk(self, args: list[str]) -> None:
        """One line on stderr, exit 2, and no second complaint when the interpreter ends."""
        with open("/dev/full", "wb") as full:
            done = run(*args, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr.startswith("lorafa-prof: ")
        assert done.stderr.endswith("No space left on device\n")
        assert done.stderr.count("\n") == 1

    def test_no_stdout_at_all(self) -> None:
        """Started with a closed stdout, the program still ends in order."""
        done = subprocess.run(
            ["bash", "-c", f"{' '.join(PROGRAM)} list gpus >&-"], check=False, capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_an_encoding_without_our_signs(self) -> None:
        """Rules and arrows are spelled in ASCII where the stream cannot hold them."""
        done = run("paper", "--table", "7", env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0
        assert done.stdout.isascii()
        assert "8bsd > 32bsd" in done.stdout
        assert "-----" in done.stdout
