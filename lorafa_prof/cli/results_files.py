"""Files with results, as commands write them and other commands read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafa_prof.errors import BadInputError

if TYPE_CHECKING:
    from lorafa_prof.results import Result

#: Bytes of the largest file that is read: a traced step of a large model is a few megabytes.
LARGEST_RESULT = 256 * 2**20


def read_results(path: str) -> list[Result]:
    """Return the results in a file that `predict`, `measure`, `run` or `compare` wrote as JSON.

    Raises:
        BadInputError: not such a file; the text names it, and what is wrong with it.
    """
    from lorafa_prof.catalog.json_files import one_line, read_json_object
    from lorafa_prof.results import results_in

    document = read_json_object(path, largest=LARGEST_RESULT, what="a result")
    try:
        return results_in(document)
    except BadInputError as error:
        raise BadInputError(f"{one_line(path)}: {one_line(str(error), 400)}") from error
