"""Writing a result to a file, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from lorafa_prof.errors import BadInputError


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a result can be written there, so that a long run learns of a wrong -o before it begins.

    Raises:
        BadInputError: the folder is missing, the path is a folder, or permissions forbid writing.
    """
    target = Path(path)
    try:
        if not _is_special(target):
            # A link is followed: the file that it names is replaced, not the link. Not so for /dev/stdout, which
            # may lead to a pipe without a name.
            target = Path(os.path.realpath(path))
        if target.is_dir():
            raise BadInputError(f"cannot write {_shown(path)}: it is a folder")
        if not target.parent.is_dir():
            reason = "is not a folder" if target.parent.exists() else "does not exist"
            raise BadInputError(f"cannot write {_shown(path)}: the folder {_shown(target.parent)} {reason}")
        # A device or a pipe is written in place, so its folder's permissions do not matter.
        needed = [target] if target.exists() else []
        needed += [] if _is_special(target) else [target.parent]
        for item in needed:
            if not os.access(item, os.W_OK):
                raise BadInputError(f"cannot write {_shown(path)}: no permission to write {_shown(item)}")
    except (OSError, ValueError) as error:  # a name too long, a NUL byte
        raise BadInputError(f"cannot write {_shown(path)}: {_reason(error)}") from error
    return target


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, with its line ends as they are; else as `write_bytes_atomically`.

    Raises:
        BadInputError: the path cannot be written; the text says why.
    """
    write_bytes_atomically(path, text.encode("utf-8", "replace"))


def write_bytes_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    A temporary file beside the target takes the data and then its place, so a reader sees the old file or the whole
    new one, and an interrupted write leaves nothing behind. Devices and pipes (/dev/stdout, /dev/null) are written
    directly: replacing them by a file would be wrong.

    Raises:
        BadInputError: the path cannot be written; the text says why.
    """
    target = require_writable(path)
    try:
        if _is_special(target):
            target.write_bytes(data)
        else:
            _replace(target, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BadInputError(f"cannot write {_shown(path)}: {_reason(error)}") from error


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".lorafa-prof-{os.urandom(8).hex()}.tmp")
    try:
        # os.open and not tempfile: a new file gets the permissions that the user's umask gives, as any other output.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _is_special(target: Path) -> bool:
    """Return whether the path is there and neither a file nor a folder: a device, a pipe, a socket."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _shown(path: str | os.PathLike[str]) -> str:
    text = repr(os.fspath(path))
    return text if len(text) <= 120 else f"{text[:58]}...{text[-58:]}"
