"""Text reports of up to 100 columns."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from thinkml.evaluation.report.page import Block, Cell, Items, Page, Table

_WIDTH = 100
_MAX_NAME = 30  # of a row
_MAX_HEAD = 20  # of a column


def render_text(page: Page) -> str:
    """Lays a report out as text; one evaluation of several begins with its headline, underlined."""
    return '\n\n'.join([_wrapped(page.headline), *_parts(page)])


def _parts(page: Page) -> Iterator[str]:
    for index, section in enumerate(page.sections):
        if section.blocks:
            first, *others = map(_block, section.blocks)
            # The first table belongs to the headline.
            yield first if index == 0 else f'{section.title}\n{first}'
            yield from others
    for part in page.parts:
        headline = _wrapped(part.headline)
        yield f'{headline}\n{"=" * max(map(_width, headline.splitlines()))}'
        yield from _parts(part)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return '\n'.join(_table(block))
    if isinstance(block, Items):
        return '\n'.join(_wrapped(item, '- ') for item in block)
    return '\n'.join(map(_wrapped, block.split('\n')))


def _wrapped(text: str, bullet: str = '') -> str:
    return textwrap.fill(
        _line(text), _WIDTH, initial_indent=bullet, subsequent_indent=' ' * len(bullet)
    )


def _table(table: Table) -> Iterator[str]:
    """Yields lines with aligned columns.

    Columns that do not fit into the width follow below, with the first column repeated.
    """
    if table.title:
        yield _line(table.title)
    longest = _MAX_HEAD
    if table.has_short_head:
        longest = 12 if len(table.head) <= 9 else 6
    rows = [[_cut(name, longest) for name in table.head]] if table.head else []
    rows += [[_cell(cell, _MAX_NAME * (column == 0)) for column, cell in enumerate(row)]
             for row in (*table.rows, *table.foot)]  # fmt: skip
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for number, columns in enumerate(_column_groups(widths)):
        if number:
            yield ''
        for index, row in enumerate(rows):
            if table.foot and index == len(rows) - len(table.foot):
                yield ''
            cells = (_padded(row[i], widths[i], table.align[i]) for i in columns)
            yield '  '.join(cells).rstrip()


def _column_groups(widths: Sequence[int]) -> Iterator[list[int]]:
    """Yields groups of columns that fit into the width beside the first one."""
    columns, used = [0], widths[0]
    for index, width in enumerate(widths[1:], 1):
        if len(columns) > 1 and used + 2 + width > _WIDTH:
            yield columns
            columns, used = [0], widths[0]
        columns.append(index)
        used += 2 + width
    yield columns


def _cell(cell: Cell, longest: int) -> str:
    text = _cut(cell.text, longest) if longest else _line(cell.text)
    return f'{text} {cell.aside}' if cell.aside else text


def _cut(text: str, longest: int) -> str:
    text = _line(text)
    return text if len(text) <= longest else f'{text[: longest - 2]}..'


def _padded(text: str, width: int, align: str) -> str:
    space = ' ' * (width - _width(text))
    return space + text if align == 'r' else text + space


def _width(text: str) -> int:
    """Returns a text's columns in a terminal: two for wide characters, none for combining ones."""
    wide = sum(unicodedata.east_asian_width(character) in 'WF' for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _line(text: str) -> str:
    """Returns a user's text with characters that break a line replaced by spaces."""
    return ''.join(' ' if unicodedata.category(c) in ('Cc', 'Zl', 'Zp') else c for c in text)
