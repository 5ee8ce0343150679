"""The group of commands, and the one place where errors meet the user.

Importing this module imports click and our errors, nothing more. A command's module is imported when the command is
named; the group's own help comes from `COMMANDS`, so that it costs no imports either. Every command lives in
`lorafa_prof/cli/NAME.py` and is called `command` there.

Results go to stdout, diagnostics to stderr. Exit codes: 0 done, 2 bad usage or input, 3 a component is missing, 4 the
device cannot do it, 130 interrupted, 141 the reader of our output went away. Any other exception is a bug and keeps
its traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from lorafa_prof import __version__
from lorafa_prof.errors import BadInputError, LorafaProfError, nearest_names

PROGRAM = "lorafa-prof"

#: Each command, in the order of the help, with the line that the help says about it.
COMMANDS = {
    "predict": "Predict the memory of a fine-tuning step, part by part, without a GPU.",
    "oom": "Find the largest batch, sequence or rank that fits a GPU, and what makes the next one fit.",
    "capacity": "Find the batch that trains fastest within a GPU's memory, and what an epoch takes and costs.",
    "sweep": "Predict every combination of options, one row each: CSV, Parquet or JSON.",
    "planner": "Write a self-contained page in which the predictions move with controls.",
    "measure": "Take real training steps on a device: memory by phase and part, step time, MFU.",
    "calibrate": "Measure how fast this device is, for predictions of step times.",
    "run": "Profile a training script of your own, unchanged: memory by phase and part, step time.",
    "compare": "Hold measurements against the predictions of their runs, part by part.",
    "diff": "Tell two environments apart: which operations of the same run allocate other bytes.",
    "plot": "Draw figures of saved results: parts, errors, frontiers, timelines, ranks, cards, MFU.",
    "report": "Write one self-contained HTML page of saved results.",
    "replay": "Replay a recorded memory snapshot, with any allocator settings.",
    "paper": "Compute the LoRA-FA paper's tables; hold its figures and claims against both engines.",
    "list": "List the models, GPUs and methods that are known.",
}

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
#: What a shell reports for a filter that a closed pipe ended (128 + SIGPIPE), as for cat or git. Not 0: that would
#: claim that the whole result was delivered, and would hide the verdict of a --check.
EXIT_PIPE_CLOSED = 141
#: Packages whose releases decide what an answer is, by the names that they are installed under.
DECISIVE = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


class _Stderr:
    """Whether remarks and progress are wanted there; errors always are."""

    is_quiet = False


def is_quiet() -> bool:
    """Return whether -q was given: nothing but results and errors."""
    return _Stderr.is_quiet


def say(text: str) -> None:
    """Say a line on stderr, unless -q was given; nothing in it can steer the terminal."""
    if not _Stderr.is_quiet:
        click.echo(f"{PROGRAM}: {_line(text)}", err=True)


def tell(text: str) -> None:
    """Say a line without the program's name on stderr, as it is cleaned already: what others may read."""
    if not _Stderr.is_quiet:
        click.echo(text, err=True)


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _be_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        _Stderr.is_quiet = True


def _quiet_option() -> click.Option:
    return click.Option(
        ["-q", "--quiet"], is_flag=True, is_eager=True, expose_value=False, callback=_be_quiet,
        help="Say nothing on stderr but errors: neither progress nor remarks.",
    )  # fmt: skip


def _show_versions(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print our version, and those that answers depend on; a click callback."""
    if not value or ctx.resilient_parsing:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    click.echo(f"{PROGRAM}, version {__version__}")
    click.echo(f"Python {platform.python_version()}")

    def line(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} is not installed"

    click.echo("\n".join(map(line, DECISIVE)))
    ctx.exit()


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command's name."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or return None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"lorafa_prof.cli.{cmd_name}").command
        if not any("-q" in parameter.opts for parameter in command.params):
            command.params.append(_quiet_option())
        if ctx.resilient_parsing:  # the shell asks what could come next
            from lorafa_prof.cli.completion import know_values

            know_values(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name; an unknown one is met with the nearest names."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = nearest_names(name, COMMANDS)
            offer = f"; did you mean {', '.join(near)}?" if near else f". Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"no such command {name[:80]!r}{offer}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    name=PROGRAM,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 bad usage or input, 3 a component is missing, 4 the device cannot do it, "
    "130 interrupted.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_versions,
    help="Show the version, and those of the installed libraries that answers depend on.",
)  # fmt: skip
@click.option(
    "-q", "--quiet", is_flag=True, is_eager=True, expose_value=False, callback=_be_quiet,
    help="Say nothing on stderr but errors; the same as behind a command.",
)  # fmt: skip
def group() -> None:
    """Memory and throughput of fine-tuning large language models: will it fit, how fast will it be, and why?

    \b
    Examples:
      lorafa-prof predict --model llama2-7b --bs 8 --seq 1024 --gpu rtx4090
      lorafa-prof oom --model llama2-7b --gpu rtx4090 --method lora,lora-fa
      lorafa-prof predict --help
    """  # noqa: D301 - click reads the escaped \b as "do not wrap this paragraph"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `args` are the process's own unless given."""
    try:
        code = _dispatch(sys.argv[1:] if args is None else list(args))
        # What click has left in the buffer is written now, while a failure can still be told.
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except LorafaProfError as error:
        return _complain(str(error), error.exit_code)
    except click.ClickException as error:
        # Click's other exceptions say 1, which is the answer of --check here.
        with contextlib.suppress(OSError):
            error.show()
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED
    except OSError as error:  # a full disk, a file that vanished: the machine's doing, and no bug of ours
        return _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", EXIT_USAGE)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _dispatch(args: list[str]) -> int:
    """Run the group without click's own error handling, which would answer a closed pipe with 1."""
    _Stderr.is_quiet = False
    if any("\0" in arg for arg in args):  # none comes from a shell; click's paths would end in a traceback
        raise BadInputError("an argument has a NUL character, which no name and no file has")
    if "_LORAFA_PROF_COMPLETE" in os.environ:  # the shell asks for completions: click's own affair
        group.main(args, prog_name=PROGRAM)
    try:
        with group.make_context(PROGRAM, args) as context:
            result = group.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return result if isinstance(result, int) else 0


def _complain(text: str, code: int) -> int:
    """Say what went wrong in one line, in which nothing (a file's name, say) can steer the terminal."""
    with contextlib.suppress(OSError):
        click.echo(f"{PROGRAM}: {_line(text)}", err=True)
    return code


def _settle(stream: TextIO | None) -> None:
    """Point a stream that cannot be flushed at nothing: the interpreter flushes at exit and would print a traceback."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, stream.fileno())
            os.close(handle)
