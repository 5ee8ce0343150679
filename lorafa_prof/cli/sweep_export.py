"""A finished sweep as Parquet or JSON: made from its CSV lines, with what the sweep was in front of them."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lorafa_prof.cli.sweep_grid import FRACTIONS, SWITCHES, TEXTS
from lorafa_prof.errors import BadInputError, MissingComponentError
from lorafa_prof.reports.output import writing

#: Key of a Parquet file's metadata.
_METADATA = b"lorafa_prof_sweep"
#: Bytes of CSV that become one row group.
_BLOCK = 2**24
_FIRST, _BETWEEN, _LAST = '{"sweep": ', ', "rows": [\n', "\n]}\n"


def require_parquet() -> None:
    """See that Parquet can be written.

    Raises:
        MissingComponentError: it cannot; the text holds the command.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingComponentError("Parquet needs pyarrow: pip install 'lorafa-prof[parquet]'")


def export(kind: str, source: str, target: str, definition: Mapping[str, Any]) -> None:
    """Write the rows of a CSV file to `target`, whole or not at all.

    Args:
        kind: "parquet" or "json".
        source: the CSV file.
        target: the file to write.
        definition: what the sweep was.

    Raises:
        BadInputError: the target cannot be written, or a number is too large for its column.
    """
    (_to_parquet if kind == "parquet" else _to_json)(source, target, json.dumps(definition))


def definition_in(kind: str, path: str) -> Any:
    """Return the definition of the sweep that a file holds; None where it is no file of a sweep."""
    try:
        text = _parquet_definition(path) if kind == "parquet" else _json_definition(path)
        return None if text is None else json.loads(text)
    except (OSError, ValueError):
        return None


def _to_json(source: str, target: str, definition: str) -> None:
    with writing(target) as stream:
        stream.write(f"{_FIRST}{definition}{_BETWEEN}".encode())
        for number, row in enumerate(_records(source)):
            stream.write((",\n" if number else "").encode() + json.dumps(row, ensure_ascii=False).encode())
        stream.write(_LAST.encode())


def _records(source: str) -> Iterator[dict[str, Any]]:
    with open(source, encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        names = next(rows)
        readers = [_reader(name) for name in names]
        for row in rows:
            yield {
                name: read(text) if text else None for name, read, text in zip(names, readers, row, strict=True)
            }  # fmt: skip


def _reader(name: str) -> Any:
    if name in TEXTS:
        return str
    if name in SWITCHES:
        return lambda text: text == "true"
    return float if name in FRACTIONS else int


def _json_definition(path: str) -> str | None:
    with open(path, encoding="utf-8", newline="") as stream:
        line = stream.readline()
    end = len(line) - len(_BETWEEN)
    return line[len(_FIRST) : end] if line.startswith(_FIRST) and line.endswith(_BETWEEN) else None


def _to_parquet(source: str, target: str, definition: str) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    with open(source, encoding="utf-8", newline="") as stream:
        names = next(csv.reader(stream))
    schema = pa.schema([(name, _arrow_type(pa, name)) for name in names])
    options = pyarrow.csv.ConvertOptions(
        column_types=schema, strings_can_be_null=True, null_values=[""], true_values=["true"], false_values=["false"]
    )
    schema = schema.with_metadata({_METADATA: definition.encode()})
    try:
        blocks = pyarrow.csv.ReadOptions(block_size=_BLOCK)
        with writing(target) as stream, pyarrow.csv.open_csv(source, blocks, convert_options=options) as batches:
            with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    except pa.ArrowInvalid as error:
        raise BadInputError(f"{source!r} cannot become Parquet: {error}") from error


def _arrow_type(pa: Any, name: str) -> Any:
    if name in TEXTS:
        return pa.string()
    if name in SWITCHES:
        return pa.bool_()
    return pa.float64() if name in FRACTIONS else pa.int64()


def _parquet_definition(path: str) -> str | None:
    import pyarrow.parquet

    found = (pyarrow.parquet.read_schema(path).metadata or {}).get(_METADATA)
    return None if found is None else bytes(found).decode()


def differing(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names under which two definitions differ."""
    return [name for name in {**wanted, **there} if there.get(name) != wanted.get(name)]
