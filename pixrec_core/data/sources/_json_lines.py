"""JSON lines, read by DuckDB into one table row per line.

DuckDB reads only the named fields of each line, on all cores, and keeps file order, so that row numbers are line
numbers. It does not say why it cannot read a line: Python finds the reason, for rejected lines only.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from pixrec_core.data import raw_lines
from pixrec_core.data.database import file_literal
from pixrec_core.data.raw_lines import LineIndex
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.data.sources._mapped_columns import BLANKS
from pixrec_core.errors import SourceError

#: `text`: content of a JSON string, given the text of the JSON value (NULL for a missing field).
#: `id_text`: an id: a string without the blanks around it, in the Unicode form NFC, or a whole number. The condition is
#: much faster than the functions, and few ids fulfil it; the others are what is between the quotes.
#: `id_fault`: why a JSON value is not an id.
_MACROS: Final = rf"""
CREATE MACRO text(j) AS CASE WHEN starts_with(j, '"') THEN json_extract_string(j, '$') END;
CREATE MACRO id_text(j) AS CASE
    WHEN j < '"!' OR suffix(j, ' "') OR contains(j, '\') OR strlen(j) <> length(j)
        THEN trim(nfc_normalize(text(j)), {BLANKS})
    WHEN starts_with(j, '"') THEN substring(j, 2, strlen(j) - 2) ELSE regexp_replace(j, '[.]0+$', '') END;
CREATE MACRO id_fault(name, j) AS CASE
    WHEN j IS NULL THEN name || ' is missing'
    WHEN NOT starts_with(j, '"') AND NOT regexp_full_match(j, '-?[0-9]+([.]0+)?')
        THEN name || ' is neither text nor a whole number: ' || left(j, 40) END;
"""


@dataclass(frozen=True)
class Shape:
    """The fields of one kind of line. SQL refers to a field as `raw.<field>`: the text of its JSON value, or NULL.

    That of `fault` also refers to a canonical column as `raw.read_<column>`, so that no value is read twice.

    Attributes:
        fields: JSON keys to read.
        columns: SQL of each canonical column.
        fault: SQL of the reason to reject a line; NULL for a good one.
        macros: SQL that defines the macros of the others, besides `text` and `id_fault`.
    """

    fields: tuple[str, ...]
    columns: dict[str, str]
    fault: str
    macros: str = ""


def load_json_lines(
    db: duckdb.DuckDBPyConnection, path: Path, shape: Shape, folder: Path, max_expansion: float
) -> list[RawTable]:
    """Load a file of JSON lines, plain or gzip; `folder` is for temporary files.

    Raises:
        SourceError: the file is missing or empty, or expands past `max_expansion`.
    """
    plain = raw_lines.unpack(path, folder, max_expansion)
    _refuse_other_forms(path, plain.path)
    index, query = _load(db, plain.path, shape, folder)
    return [
        RawTable(
            path,
            f"SELECT *, NULL::VARCHAR AS dropped FROM ({query})",  # noqa: S608
            partial(raw_lines.pick, plain.path, index),
            index.count,
            explain=_why_unreadable,
            damage=plain.damage,
        )
    ]


def _refuse_other_forms(path: Path, plain: Path) -> None:
    """Raise SourceError for a JSON list, or an object that is written on several lines."""
    with plain.open("rb") as file:
        first = file.read(raw_lines.CHUNK).removeprefix(raw_lines.BOM).lstrip()
    line = first.partition(b"\n")[0].strip()
    if line.startswith(b"[") or line == b"{":
        form = "a JSON list" if line.startswith(b"[") else "JSON with an object on several lines"
        raise SourceError(f"{path} is {form}; write one object per line, for example with `jq -c '.[]?'`")


def _load(db: duckdb.DuckDBPyConnection, path: Path, shape: Shape, folder: Path) -> tuple[LineIndex, str]:
    """Create the table `parsed`; return the lines of the file, and SQL of the rows with their `line`.

    DuckDB skips blank lines and stops at endless ones; a file that has any is read from a copy without them.
    """
    db.execute(_MACROS + shape.macros)
    index = raw_lines.index(path)
    if index.readable and _create(db, path, shape) == index.count:
        return index, "SELECT *, rowid + 1 AS line FROM parsed"
    copy = folder / "readable.jsonl"
    numbers = raw_lines.write_readable(path, copy)
    rows = _create(db, copy, shape)
    assert rows == len(numbers), f"{path}: {rows} rows of {len(numbers)} lines that are not blank"
    db.register("numbers", pa.table({"line": np.frombuffer(numbers, np.int64)}))
    db.execute("CREATE TABLE line_numbers AS FROM numbers")
    db.unregister("numbers")
    return index, "SELECT * FROM parsed POSITIONAL JOIN line_numbers"


def _create(db: duckdb.DuckDBPyConnection, path: Path, shape: Shape) -> int:
    keys = ", ".join(f"{field}: 'JSON'" for field in shape.fields)
    casts = ", ".join(f"{field}::VARCHAR AS {field}" for field in shape.fields)
    read = ", ".join(f'{sql} AS "read_{name}"' for name, sql in shape.columns.items())
    columns = ", ".join(f'"read_{name}" AS "{name}"' for name in shape.columns)
    scan = f"""read_json({file_literal(path)}, format = 'newline_delimited', compression = 'none',
        maximum_object_size = {raw_lines.LONGEST}, ignore_errors = true, columns = {{{keys}}})"""
    raw = f"(SELECT *, {read} FROM (SELECT {casts} FROM {scan}) AS raw) AS raw"  # noqa: S608
    query = f"CREATE OR REPLACE TABLE parsed AS SELECT {columns}, {shape.fault} AS fault FROM {raw}"  # noqa: S608
    (rows,) = fetch_row(db, query)
    return int(rows)


def _why_unreadable(raw: bytes) -> str | None:  # noqa: PLR0911
    """Return why a line is not a JSON object; None for a JSON object."""
    if len(raw) > raw_lines.LONGEST:
        return f"longer than {raw_lines.LONGEST:,} bytes"
    if b"\0" in raw:
        return "contains a NUL byte"
    try:
        value = json.loads(raw.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"broken UTF-8 at byte {error.start + 1}"
    except UnicodeEncodeError:
        return "contains half of a surrogate pair"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"not JSON: {error}"
    return None if isinstance(value, dict) else "not a JSON object"
