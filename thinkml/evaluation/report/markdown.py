"""Markdown reports, in GitHub's flavour."""

import re
from collections.abc import Iterable, Iterator

from thinkml.evaluation.report.page import Block, Cell, Items, Page, Table

# Characters with a meaning in Markdown, tables, formulas or HTML; underscores only at word ends.
_SPECIAL = re.compile(r'[\\`*{}\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_])')
_LEADING = re.compile(r'^(\d*)([-+=.)])(?=[\s=-]|$)')  # begins a list or underlines a heading
_BREAKS = re.compile(r'[\s\x00-\x1f\x7f-\x9f]+')


def render_markdown(page: Page) -> str:
    """Lays a report out as Markdown. Names given by users are escaped."""
    return '\n\n'.join(['# Evaluation report', _text(page.headline), *_parts(page, '##')]) + '\n'


def _parts(page: Page, level: str) -> Iterator[str]:
    for section in page.sections:
        if section.blocks:
            yield f'{level} {_text(section.title)}'
            for block in section.blocks:
                yield from _block(block)
    for part in page.parts:
        yield f'{level} {_text(part.name)}'
        yield _text(part.headline.removeprefix(f'{part.name}: '))
        yield from _parts(part, f'{level}#')


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        if block.title:
            yield f'**{_text(block.title)}**'
        yield _table(block)
    elif isinstance(block, Items):
        yield '\n'.join(f'- {_text(item)}' for item in block)
    else:
        yield from map(_text, block.split('\n'))


def _table(table: Table) -> str:
    head = _row(map(_text, table.head or [''] * len(table.align)))
    rule = _row('---:' if side == 'r' else '---' for side in table.align)
    rows = (_row(map(_cell, row)) for row in (*table.rows, *table.foot))
    return '\n'.join([head, rule, *rows])


def _row(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _cell(cell: Cell) -> str:
    return f'{_text(cell.text)} {cell.aside}'.strip()


def _text(text: str) -> str:
    line = _BREAKS.sub(' ', text).strip()
    return _LEADING.sub(r'\1\\\2', _SPECIAL.sub(r'\\\g<0>', line))
