"""Writing a result to a file: whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lorafa_prof.errors import BadInputError
from lorafa_prof.reports.output import require_writable, write_atomically, write_bytes_atomically

as_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


def test_a_new_file(tmp_path: Path) -> None:
    """UTF-8, line ends as given, and nothing beside it."""
    write_atomically(tmp_path / "x.csv", "é,1\r\n")
    assert (tmp_path / "x.csv").read_bytes() == "é,1\r\n".encode()
    assert os.listdir(tmp_path) == ["x.csv"]


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    """No encoding, no line ends: a pickle is not text."""
    write_bytes_atomically(tmp_path / "x.pickle", b"\x80\x04\r\n\xff.")
    assert (tmp_path / "x.pickle").read_bytes() == b"\x80\x04\r\n\xff."
    assert os.listdir(tmp_path) == ["x.pickle"]


@posix
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """The umask decides for a new file; an existing one keeps its own."""
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", "1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o604)
    write_atomically(tmp_path / "new", "2")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604


@posix
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file behind it is replaced."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("missing/x", "the folder .* does not exist"),
        ("file/x", "the folder .* is not a folder"),
        ("folder", "it is a folder"),
        ("n" * 300, "name too long"),
        ("a\0b", "null"),
    ],
)
@pytest.mark.parametrize("function", [require_writable, lambda path: write_atomically(path, "text")])
def test_places_that_cannot_be_written(place: str, reason: str, function: object, tmp_path: Path) -> None:
    """The error says what is in the way, and nothing is created."""
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInputError, match=f"(?i)cannot write .*: .*{reason}"):
        function(tmp_path / place)  # type: ignore[operator]
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@as_root
def test_permissions_are_respected(tmp_path: Path) -> None:
    """Neither a read-only file nor a read-only folder is written, though replacing could get around the first."""
    (tmp_path / "fixed").write_text("old")
    (tmp_path / "fixed").chmod(0o444)
    with pytest.raises(BadInputError, match="no permission"):
        write_atomically(tmp_path / "fixed", "new")
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(BadInputError, match="no permission"):
        write_atomically(tmp_path / "closed" / "x", "new")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old content stays whole, the temporary file goes."""
    (tmp_path / "x").write_text("old")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((BadInputError, KeyboardInterrupt)) as raised:
        write_atomically(tmp_path / "x", "new")
    if isinstance(error, OSError):
        assert "No space left on device" in str(raised.value)
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


@posix
def test_devices_and_pipes_are_written_in_place(tmp_path: Path) -> None:
    """Replacing /dev/null by a file would be a catastrophe, and a named pipe has a reader."""
    write_atomically(os.devnull, "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(tmp_path / "pipe", "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_lone_surrogates_do_not_stop_the_write(tmp_path: Path) -> None:
    """A file name that is no UTF-8 may be part of a result."""
    write_atomically(tmp_path / "x", "run-\udc80.json")
    assert (tmp_path / "x").read_text("utf-8") == "run-?.json"
