"""Writing several files into a folder, all of them or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.output import require_writable, write_bytes_atomically


def require_folder(path: str | os.PathLike[str]) -> Path:
    """Return `path` if files can be written into such a folder, or it can be made.

    Raises:
        BadInputError: it is no folder, it lies in none, or permissions forbid writing.
    """
    if not os.fspath(path):
        raise BadInputError("cannot write into '': it is no name of a folder")
    target = Path(path)
    try:
        if not target.exists():
            return _require_room(require_writable(target))
        if not target.is_dir():
            raise BadInputError(f"cannot write into {_shown(path)}: it is no folder")
        if not os.access(target, os.W_OK):
            raise BadInputError(f"cannot write into {_shown(path)}: no permission")
    except (OSError, ValueError) as error:  # a name too long, a NUL byte
        raise BadInputError(f"cannot write into {_shown(path)}: {error}") from error
    return target


def _require_room(target: Path) -> Path:
    """Return the name of a folder that can be made: some file systems refuse one, whatever permissions say."""
    probe = _beside(target.parent)
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise BadInputError(f"cannot make the folder {_shown(target)}: {error.strerror or error}") from error
    return target


def _beside(folder: Path) -> Path:
    return folder / f".lorafa-prof-{os.urandom(8).hex()}.tmp"


def write_files(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, all of them or none, and return their paths; the folder is made where it is missing.

    They are written beside it first, in a folder that becomes it, or whose files take their places in it.

    Args:
        folder: it, or at least the folder that it lies in, exists.
        files: the bytes of each, by its name.

    Raises:
        BadInputError: the folder cannot be made or written; the text says why.
    """
    target = require_folder(folder)
    is_there = target.exists()
    staging = _beside(target if is_there else target.parent)
    try:
        staging.mkdir()
        for name, data in files.items():
            if is_there:
                require_writable(target / name)
            write_bytes_atomically(staging / name, data)
        if is_there:
            for name in files:
                _take_place(staging / name, target / name)
        else:
            staging.rename(target)
    except OSError as error:
        raise BadInputError(f"cannot write into {_shown(folder)}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(staging)
    return [Path(folder) / name for name in files]


def _take_place(made: Path, target: Path) -> None:
    """Put a file where another may be, whose permissions it keeps; a link is followed."""
    target = Path(os.path.realpath(target))
    if target.exists():
        os.chmod(made, stat.S_IMODE(target.stat().st_mode))
    os.replace(made, target)


def _shown(path: str | os.PathLike[str]) -> str:
    text = repr(os.fspath(path))
    return text if len(text) <= 120 else f"{text[:58]}...{text[-58:]}"
