"""Table: rows of values, shown as text and in notebooks, and converted for pandas."""

import html
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinkml.errors import ConfigError, unknown_name
from thinkml.text_table import aligned_lines

if TYPE_CHECKING:
    import pandas

_LONGEST = 40

# Limits depth and length, since a cell shows only the beginning.
_short = reprlib.Repr()
_short.maxlevel = _short.maxlist = _short.maxdict = _short.maxstring = _LONGEST


def flatten(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the values of nested dicts under names joined by dots.

    Empty dicts are dropped. If two values get the same name, the last one is kept.

    Example:
        >>> from thinkml.models.model_table import flatten
        >>> flatten({'version': 3, 'metrics': {'accuracy': 0.95, 'loss': 0.2}})
        {'version': 3, 'metrics.accuracy': 0.95, 'metrics.loss': 0.2}
    """
    flat: dict[str, Any] = {}
    waiting = [(str(key), value) for key, value in reversed(list(values.items()))]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            inner = reversed(list(value.items()))
            waiting += [(f'{name}.{key}', item) for key, item in inner]
        else:
            flat[name] = value
    return flat


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of plain values under named columns.

    In text, long cells are cut and missing values are empty; the rows keep the full values.

    Attributes:
        columns: the names of the columns, in order.
        rows: a dict of plain values for each row. A column that is not in it has no value.

    Example:
        >>> from thinkml.models.model_table import Table
        >>> table = Table.of(
        ...     [{'version': 1, 'metrics': {'accuracy': 0.91}},
        ...      {'version': 2, 'metrics': {'accuracy': 0.954321}, 'note': 'wider'}]
        ... )
        >>> print(table)
        version  metrics.accuracy  note
              1            0.9100
              2            0.9543  wider
        >>> table['version']
        [1, 2]
    """

    columns: Sequence[str]
    rows: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, rows: Iterable[Mapping[Any, Any]]) -> 'Table':
        """Makes a table of flattened dicts, with the columns in the order of first appearance."""
        flat = [flatten(row) for row in rows]
        return cls(tuple(dict.fromkeys(name for row in flat for name in row)), flat)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        if column not in self.columns:
            raise KeyError(unknown_name('column', column, self.columns))
        return [row.get(column) for row in self.rows]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        if not self.columns:
            return '(no rows)'
        cells = [[_cell(row.get(name)) for name in self.columns] for row in self.rows]
        numeric = [index for index, name in enumerate(self.columns) if self._is_numeric(name)]
        lines = aligned_lines([[_cell(name) for name in self.columns], *cells], right=numeric)
        return '\n'.join(lines if self.rows else [*lines, '(no rows)'])

    def _is_numeric(self, column: str) -> bool:
        values = [value for value in self[column] if value is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)

    def _repr_html_(self) -> str:
        sides = ['right' if self._is_numeric(name) else 'left' for name in self.columns]
        lines = [_html_line('th', self.columns, sides)]
        lines += [_html_line('td', map(row.get, self.columns), sides) for row in self.rows]
        return '\n'.join(['<table>', *lines, '</table>'])

    def to_pandas(self) -> 'pandas.DataFrame':
        """Returns the rows as a data frame.

        Raises:
            ConfigError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(
                'to_pandas: needs the package pandas, which is not installed. Install it: '
                'pip install pandas.'
            ) from error
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))


def _html_line(kind: str, values: Iterable[Any], sides: Sequence[str]) -> str:
    cells = [
        f'<{kind} style="text-align: {side}">{html.escape(_cell(value))}</{kind}>'
        for value, side in zip(values, sides, strict=True)
    ]
    return f'<tr>{"".join(cells)}</tr>'


def _cell(value: object) -> str:
    """Returns a value as one short line, with control characters replaced by spaces."""
    if value is None:
        return ''
    if isinstance(value, float):
        text = _number(value)
    else:
        text = _short.repr(value) if isinstance(value, list | dict) else str(value)
    text = ''.join(c if c.isprintable() else ' ' for c in text[: _LONGEST + 1])
    return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'


def _number(value: float) -> str:
    plain = value == 0 or 1e-3 <= abs(value) < 1e5 or not math.isfinite(value)
    return f'{value:.4f}' if plain else f'{value:.4g}'
