"""Comfort in a shell: completion, -q, versions, colour, and terminals of any width."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from lorafa_prof import __version__
from lorafa_prof.catalog import device_names, model_names
from lorafa_prof.cli import main
from lorafa_prof.cli.program import COMMANDS, DECISIVE, group
from lorafa_prof.specs import METHODS

ROOT = Path(__file__).resolve().parents[2]


def offered(*words: str) -> list[tuple[str, str]]:
    """What a shell offers in the place of the last word: values and their kinds."""
    asked = ShellComplete(group, {}, "lorafa-prof", "_LORAFA_PROF_COMPLETE")
    return [(item.value, item.type) for item in asked.get_completions(list(words[:-1]), words[-1])]


class TestCompletion:
    """What is offered, and that the shells take it."""

    def test_commands_and_options(self) -> None:
        """By their beginnings."""
        assert offered("ca") == [("capacity", "plain"), ("calibrate", "plain")]
        assert ("--checkpointing", "plain") in offered("predict", "--ch")
        assert offered("predict", "--checkpointing", "s") == [("selective", "plain")]

    @pytest.mark.parametrize(
        ("words", "names"),
        [
            (("predict", "--model"), model_names()), (("sweep", "--model"), model_names()),
            (("predict", "--method"), METHODS), (("oom", "--gpu"), device_names()),
            (("measure", "--gpu"), device_names()), (("list",), ("models", "gpus", "methods")),
        ],
    )  # fmt: skip
    def test_names(self, words: tuple[str, ...], names: tuple[str, ...]) -> None:
        """Every model, method and card that there is."""
        assert offered(*words, "") == [(name, "plain") for name in names]

    def test_the_last_of_a_list(self) -> None:
        """Behind a comma another name begins."""
        assert offered("predict", "--method", "full,lora-f") == [
            (f"full,{name}", "plain") for name in METHODS if name.startswith("lora-f")
        ]

    @pytest.mark.parametrize(
        "words",
        [
            ("report", "run"), ("compare", "run"), ("plot", "x"), ("replay", "snap"), ("run", "tra"),
            ("predict", "-o", "x"), ("predict", "--config", "q"), ("predict", "--lengths", "l"),
            ("predict", "--profile", "m"), ("predict", "--model", "./my"), ("oom", "--gpu", "./my"),
        ],
    )  # fmt: skip
    def test_files(self, words: tuple[str, ...]) -> None:
        """Where a file is taken, the shell completes files."""
        assert offered(*words) == [(words[-1], "file")]

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_shell_takes_the_script(self, shell: str) -> None:
        """The script is the shell's; where the shell is installed it reads it without a complaint."""
        environment = {**os.environ, "_LORAFA_PROF_COMPLETE": f"{shell}_source"}
        script = subprocess.run(
            [sys.executable, "-m", "lorafa_prof"], env=environment, check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout
        assert "_LORAFA_PROF_COMPLETE" in script
        assert f"{shell}_complete" in script
        if shutil.which(shell):
            check = "complete -p lorafa-prof" if shell == "bash" else "true"
            done = subprocess.run([shell, "-c", f"{script}\n{check}"], check=False, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")


class TestQuiet:
    """-q leaves results and errors."""

    @pytest.mark.parametrize("args", [["-q", "predict"], ["predict", "-q"], ["predict", "--quiet"]])
    def test_remarks_go(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """PEFT has no dropout on fused experts: default methods are left out, which is said; the result is the same."""
        more = ["--model", "mixtral-8x7b", "--seq", "64", "--dropout", "0.1", "--format", "json"]
        assert main(["predict", *more]) == 0
        loud = capsys.readouterr()
        assert main([*args, *more]) == 0
        quiet = capsys.readouterr()
        assert "left out" in loud.err
        assert (quiet.out, quiet.err) == (loud.out, "")

    def test_errors_stay(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What went wrong is said all the same, and the next call is not quiet."""
        assert main(["-q", "predict", "--model", "nosuchmodel"]) == 2
        assert capsys.readouterr().err.startswith("lorafa-prof: unknown model 'nosuchmodel'")
        assert main(["predict", "--model", "mixtral-8x7b", "--seq", "64", "--dropout", "0.1"]) == 0
        assert capsys.readouterr().err

    def test_a_script_keeps_its_own(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Behind the script's name -q is the script's."""
        (tmp_path / "s.py").write_text("import sys\nprint(sys.argv[1:])\n")
        assert main(["run", str(tmp_path / "s.py"), "-q"]) == 0
        out, err = capsys.readouterr()
        assert out == "['-q']\n"
        assert err

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_it(self, name: str) -> None:
        """Where it is documented."""
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert sum("-q" in parameter.opts for parameter in command.params) == 1


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours first; then Python, and the libraries that decide what an answer is, as they are installed."""
    assert main(["--version"]) == 0
    ours, python, *others = capsys.readouterr().out.splitlines()
    assert ours == f"lorafa-prof, version {__version__}"
    assert python == f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    assert [line.split()[0] for line in others] == list(DECISIVE)
    assert f"torch {version('torch')}" in others


class TestTerminals:
    """Width and colour."""

    COMMANDS = (
        "predict --model gpt2 --method lora,lora-fa --explain --gpu t4", "oom --model gpt2 --gpu t4 --method lora",
        "list models", "list gpus", "list methods", "capacity --model gpt2 --gpu a100-80gb --method lora",
    )  # fmt: skip

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("width", [20, 40, 79, 500])
    def test_no_line_is_wider(
        self, command: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Columns and notes are wrapped; on the narrowest a word that is longer than a line may stick out."""
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([*command.split(), "-q"]) == 0
        lines = capsys.readouterr().out.splitlines()
        longest = max(len(word) for line in lines for word in line.split() if "──" not in word)
        assert max(map(len, lines)) <= max(width, longest + 10)

    @pytest.mark.skipif(os.name == "nt", reason="terminals of POSIX")
    @pytest.mark.parametrize(("no_color", "colours"), [("", True), ("1", False)])
    def test_colour_is_for_terminals(self, no_color: str, colours: bool) -> None:
        """Into a terminal with escape sequences, unless NO_COLOR says otherwise; into a pipe never."""
        command = [sys.executable, "-m", "lorafa_prof", "oom", "--model", "gpt2", "--gpu", "t4", "--method", "lora"]
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
        environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | ({"NO_COLOR": "1"} if no_color else {})
        main_end, other_end = pty.openpty()
        with subprocess.Popen(command, stdout=other_end, stderr=subprocess.DEVNULL, env=environment) as process:
            os.close(other_end)
            text = _all_of(main_end)
            assert process.wait(120) == 0
        os.close(main_end)
        assert "t4" in text
        assert bool(re.search(r"\x1b\[[0-9;]*m", text)) is colours
        piped = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        assert "\x1b" not in piped.stdout


def _all_of(descriptor: int) -> str:
    """What a terminal was sent until the program closed it."""
    data = b""
    while select.select([descriptor], [], [], 120)[0]:
        try:
            piece = os.read(descriptor, 2**16)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        data += piece
    return data.decode()
