"""Files with results, as commands write them and others read them."""

from __future__ import annotations

from lorafa_prof.catalog.json_files import one_line, read_json_object
from lorafa_prof.errors import BadInputError
from lorafa_prof.results import Result, results_in
from lorafa_prof.results.step_record import StepRecord

#: Bytes of the largest file that is read: a traced step of a large model is a few megabytes.
LARGEST_RESULT = 256 * 2**20


def read_results(path: str) -> list[Result]:
    """Return the results in a file that `predict`, `measure`, `run` or `compare` wrote as JSON.

    Raises:
        BadInputError: not such a file; the text names it, and what is wrong with it.
    """
    document = read_json_object(path, largest=LARGEST_RESULT, what="a result")
    try:
        return results_in(document)
    except BadInputError as error:
        raise of_file(path, error) from error


def of_file(path: str, error: BadInputError) -> BadInputError:
    """Return an error that names the file, which those that were raised while it was opened do already."""
    name, text = one_line(path), str(error)
    return BadInputError(text if text.startswith(name) else f"{name}: {one_line(text, 400)}")


def read_step_record(path: str) -> StepRecord:
    """Return the record of a step in a file that `diff --record` wrote.

    Raises:
        BadInputError: not such a file; the text names it, and what is wrong with it.
    """
    document = read_json_object(path, largest=LARGEST_RESULT, what="a record")
    entries = document.get("step_records")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise BadInputError(f"{one_line(path)}: no record of a step; lorafa-prof diff --record writes one")
    try:
        return StepRecord.from_json(entries[0], source=path)
    except BadInputError as error:
        raise of_file(path, error) from error
