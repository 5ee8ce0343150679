"""Feeds a function with many inputs, and watches over it: time, memory, what it writes, how it fails.

A fuzz test is a function that `fuzz` has wrapped; `tests/fuzz/test_enough.py` adds up what they are given. Most inputs
are drawn by a generator of Python's own that Hypothesis seeds: a change of a valid file takes microseconds so, where
drawn piece by piece it would take milliseconds. `pytest --hypothesis-profile explore` draws other ones.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings, strategies as st

from lorafa_prof.cli import main
from lorafa_prof.cli.program import PROGRAM
from lorafa_prof.errors import LorafaProfError

#: What the command line may answer: done, --check's "does not fit", bad input, a missing component, a device that
#: cannot. An interruption and a closed pipe do not happen here.
EXIT_CODES = (0, 1, 2, 3, 4)
#: Seconds that one input may take, on a machine that does other things too. What hangs takes longer.
LONGEST_S = 20.0
#: Bytes that the process may grow by over a whole test: no input of some kilobytes may cost as much.
MOST_GROWTH = 400 * 2**20
#: Characters of the longest message.
LONGEST_MESSAGE = 3000


# -- counting, time, memory ------------------------------------------------------------------------------------------


def fuzz(inputs: int, **given_by: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of a function that takes one input and the folder in which it may write.

    The test fails where an input takes too long, where all together take too much memory, where something is written
    outside the folder, and where it was given fewer inputs than it says.

    Args:
        inputs: how many it is given.
        given_by: strategies of the function's arguments.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(check)
        def test(tmp_path: Path) -> None:
            fed = 0

            @settings(max_examples=inputs, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
            @given(**given_by)
            def feed(**values: Any) -> None:
                nonlocal fed
                fed += 1
                began = time.monotonic()
                check(tmp_path, **values)
                assert time.monotonic() - began < LONGEST_S

            before = _peak_memory()
            with working_in(tmp_path), nothing_outside(tmp_path):
                feed()
            assert _peak_memory() - before < MOST_GROWTH
            assert fed >= inputs

        del test.__wrapped__  # type: ignore[attr-defined] # pytest asks it for the fixtures
        test.inputs = inputs  # type: ignore[attr-defined]
        return test

    return decorate


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


#: A seed, of which a function makes one input.
SEEDS = st.integers(0, 2**62)


# -- what is written -------------------------------------------------------------------------------------------------

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MOVES = ("os.rename", "os.link", "os.symlink")
_CHANGES = ("os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree")
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn")


@dataclass
class _Guard:
    """The folder in which files may change; None: nobody is watched."""

    folder: str | None = None
    installed: bool = False


_guard = _Guard()


class Escaped(AssertionError):
    """A file was about to be changed outside the folder, a process to be started, or a connection to be made."""


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _guard.folder is None:
        return
    if event in _NEVER:
        raise Escaped(f"{event} {args!r:.200}")
    if event == "open":
        path, mode, flags = args
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if not writes and not (isinstance(flags, int) and flags & _WRITES):
            return
        places = [path]
    elif event in _MOVES:
        places = [args[1]] if event != "os.rename" else list(args[:2])
    elif event in _CHANGES:
        places = [args[0]]
    else:
        return
    for place in places:
        if isinstance(place, (str, bytes)) and not _allowed(os.fsdecode(place)):
            raise Escaped(f"{event} of {place!r:.200}")


def _allowed(path: str) -> bool:
    assert _guard.folder is not None
    if path == os.devnull:
        return True
    folder = os.path.realpath(os.path.dirname(path) or ".")
    return folder == _guard.folder or folder.startswith(_guard.folder + os.sep) or path == _guard.folder


@contextlib.contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Let files change within a folder alone, start no process and connect to nothing: anything else raises."""
    if not _guard.installed:
        sys.addaudithook(_watch)  # there is no way to take one away again
        _guard.installed = True
    _guard.folder = os.path.realpath(folder)
    try:
        yield
    finally:
        _guard.folder = None


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a folder the current one."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# -- answers ---------------------------------------------------------------------------------------------------------


def read_or_refused(read: Callable[[], Any]) -> Any:
    """Return what a reader makes of an input, or None for its refusal: an error of ours in one line of fair length."""
    try:
        return read()
    except LorafaProfError as error:
        refusal = error
    assert refusal.exit_code in EXIT_CODES
    assert 0 < len(str(refusal)) < LONGEST_MESSAGE
    return None


@dataclass(frozen=True)
class Answer:
    """What the command line answered."""

    code: int
    out: str
    err: str


def call(args: list[str]) -> Answer:
    """Run the command line in this process, and see that it keeps its contract: codes, streams, no traceback."""
    out, err = _Stream(), _Stream()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    answer = Answer(code, out.text(), err.text())
    assert code in EXIT_CODES, (args, answer)
    assert "Traceback" not in answer.err, (args, answer.err)
    if code >= 2:
        assert answer.err, args
        assert answer.err.startswith((f"{PROGRAM}:", "Usage:", "Error:")), (args, answer.err)
        assert len(answer.err) < 2 * LONGEST_MESSAGE, args
    return answer


class _Stream(io.TextIOWrapper):
    """A stream with a buffer of bytes, as stdout has one."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


# -- inputs ----------------------------------------------------------------------------------------------------------

#: Values that readers have stumbled over: of every type, at the ends of ranges, with control characters, paths that
#: lead elsewhere, code, formulas of spreadsheets, tags.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, -(2**70), 10**39, 1e308, -1e-308, 0.5, -0.0, "", " ", "a",
    "0", "-1", "1e999", "NaN", "inf", "true", "null", "auto", "none", "lora", "\x00", "\x1b[2J\x1b]0;x\x07", "\udc80",
    "é\u202e\U0001f600", "x" * 5000, "../../etc/passwd", "/etc/passwd", "~/x", "$(touch x)", "`touch x`", "; touch x",
    "=cmd|'/c calc'!A1", "<script>alert(1)</script>", "&lt;img src=x onerror=alert(1)&gt;", "%s%n%x", "{0.__class__}",
    "__import__('os').system('touch x')", "con", "a\nb", "a\r\nb", "\ufeff", [], {}, [[]], [None], [1, 2, 3], {"a": 1},
    {"": {}}, [[[[[[[]]]]]]], {"__class__": "x"}, [0] * 300,
)  # fmt: skip
_NOISE = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\\u0000", b"NaN",
    b"1e999", b"9" * 50, b"&a *a", b"!!python/object:os.system", b"<<: *x", b"---\n", b"\\", b"'", b"- ", b"\t",
)  # fmt: skip


def damaged(data: bytes, chance: random.Random, most: int = 6) -> bytes:
    """Return bytes with some of them changed, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(chance.randint(1, most)):
        at = chance.randint(0, len(found))
        end = at + chance.choice((1, 1, 2, 8, 40, 400))
        deed = chance.randrange(5)
        if deed == 0 and at < len(found):
            found[at] = chance.randrange(256)
        elif deed == 1:
            del found[at:end]
        elif deed == 2:
            found[at:at] = found[at:end]
        elif deed == 3:
            found[at:at] = chance.choice(_NOISE)
        else:
            del found[at + len(found) // 2 :]
    return bytes(found)


def altered(value: Any, chance: random.Random, most: int = 3) -> Any:
    """Return plain data in which some values are others, missing, doubled, or under another key."""
    found = _copy(value)
    for _ in range(chance.randint(1, most)):
        if not isinstance(found, (dict, list)):
            return chance.choice(HOSTILE)
        holder, key = _place(found, chance)
        if key is None:
            continue
        _alter(holder, key, chance)
    return found


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _place(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """Return a container somewhere inside, and a key of it; None for the key of an empty one."""
    holder = value
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return holder, None
        key = chance.choice(keys)
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.25:
            return holder, key
        holder = inner


def _alter(holder: Any, key: Any, chance: random.Random) -> None:
    deed = chance.randrange(6)
    if deed == 0:
        del holder[key]
    elif deed == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "x", "__class__", "schema", "a\x00b", "k" * 3000))] = holder.pop(key)
    elif deed == 1:
        holder.extend(holder[:50])
    elif deed == 2:
        holder[key] = [_copy(holder[key])]
    elif deed == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = chance.choice((-holder[key], holder[key] * 10**12, holder[key] + 0.5, str(holder[key])))
    else:
        holder[key] = _copy(chance.choice(HOSTILE))
