"""The mapping of a table's columns: names in the file by our names, and the row filter `where`."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import duckdb

from pixrec_core.data.database import literal
from pixrec_core.errors import SourceError


@dataclass(frozen=True)
class Mapping:
    """The mapped columns of the files of one table.

    Attributes:
        names: the table's columns by our names.
        where: SQL over the table's columns; only rows for which it is true are read. None reads all.
        numbers: columns of CSV that contain only numbers, and are numbers in `where`.
        constants: columns that the path of a file gives, as in `year=2024/orders.csv`.
        delimiter: between two cells of CSV; None for the one in the header.
        encoding: of CSV; None for UTF-8, UTF-16 or Windows-1252, by its content.
    """

    names: Dict[str, str]
    where: str | None = None
    numbers: Sequence[str] = ()
    constants: Sequence[tuple[str, str]] = ()
    delimiter: str | None = None
    encoding: str | None = None

    def of_file(self, path: Path) -> "Mapping":
        """Return the mapping with the constants of a path."""
        found = [re.fullmatch(r"([^=]+)=([^=]+)", part) for part in path.parent.parts]
        return replace(self, constants=[(m[1], unquote(m[2])) for m in found if m])

    def resolved(self, header: Sequence[str]) -> dict[str, str]:
        """Return the exact name of each mapped column that the file has exactly once, by the name in the settings.

        Blanks around a name, its case and its Unicode form do not matter if only one column has the name otherwise.
        """
        found = {}
        every = [*header, *(name for name, _ in self.constants if name not in header)]
        for theirs in self.names.values():
            if theirs in every:
                exact = [theirs] * every.count(theirs)
            else:
                exact = [name for name in every if _plain(name) == _plain(theirs)]
            if len(exact) == 1:
                found[theirs] = exact[0]
        return found

    def check(self, path: Path, header: Sequence[str]) -> None:
        """Raise SourceError for a mapped column that the file has not exactly once."""
        found = self.resolved(header)
        for ours, theirs in self.names.items():
            if theirs not in found:
                where = f"{theirs!r}, which [datasets.<name>.source] of pixrec.toml maps to `{ours}`"
                if theirs in header:
                    raise SourceError(f"{path} has more than one column {where}; rename one of them in the file")
                raise SourceError(
                    f"{path} has no column {where}; {known(theirs, header)}. Correct the mapping, or `delimiter` if "
                    "these are not columns"
                )

    def select(self, rows: str, header: Sequence[str], cells: Dict[str, str], more: Sequence[str] = ()) -> str:
        """Return SQL of the mapped columns under our names, of `keep` if there is a filter, and of `more`.

        `rows` is SQL of the file's rows, `cells` SQL of each column by its name in the file, `more` further
        expressions.
        """
        found, constants = self.resolved(header), dict(self.constants)
        values = {name: constant(value) for name, value in constants.items()} | dict(cells)
        columns = [f'{values[found[theirs]]} AS "{ours}"' for ours, theirs in self.names.items() if theirs in found]
        if self.where:
            folded = [name.casefold() for name in values]
            number = "0|[1-9][0-9]*"
            values |= {name: n for name, n in constants.items() if name not in cells and re.fullmatch(number, n)}
            shown = (
                f"{f'TRY_CAST({cell} AS DOUBLE)' if name in self.numbers else cell} AS {quoted(name)}"
                for name, cell in values.items()
                if name and folded.count(name.casefold()) == 1 and cell != quoted(name)
            )
            rows = f"(SELECT *, ({self.where}) AS keep FROM (SELECT {', '.join(['*', *shown])} FROM {rows}))"  # noqa: S608
            columns.append("keep")
        return f"SELECT {', '.join([*columns, *more])} FROM {rows}"  # noqa: S608

    @contextmanager
    def reporting_where(self, path: Path) -> Iterator[None]:
        """Raise SourceError for an error of DuckDB within the block, if the filter can have caused it."""
        try:
            yield
        except duckdb.Error as error:
            if not self.where:
                raise
            message = str(error).partition("\n")[0]
            raise SourceError(
                f"{path}: `where` in [datasets.<name>.source] of pixrec.toml is not a valid filter: {self.where!r}: "
                f"{message}. It is a DuckDB expression over the columns of the file"
            ) from error


def constant(value: str) -> str:
    """Return a value from a path as SQL."""
    return "NULL::VARCHAR" if value == "__HIVE_DEFAULT_PARTITION__" else literal(value)


def quoted(name: str) -> str:
    """Return a column's name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).strip(" \t\n\r\ufeff\u200b\"'").casefold().split())


def known(name: str, names: Sequence[str]) -> str:
    """Return the names that there are, the close ones first, for a message about a name that is not there."""
    lower = {each.lower(): each for each in names}
    close = [lower[each] for each in difflib.get_close_matches(name.lower().replace(" ", "_"), lower, n=3)]
    hint = f"close: {', '.join(close)}; " if close else ""
    return f"{hint}known: {', '.join(names)}"
