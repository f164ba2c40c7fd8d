"""HTML reports: one web page without scripts, other files or network access."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from thinkml.evaluation.report.page import Block, Cell, Items, Page, Section, Table

_LONG = 24  # characters in a word


def render_html(page: Page) -> str:
    """Lays a report out as a web page. Names given by users are escaped."""
    template = Template(Path(__file__).with_name('page.html').read_text('utf-8'))
    body = '\n'.join([*_header(page), *_sections(page, level=2), *_parts(page)])
    return template.substitute(title=_text(f'Evaluation report: {page.headline}'), body=body)


def _header(page: Page) -> Iterator[str]:
    links = [(section.key, section.title) for section in page.sections if _is_shown(section)]
    links += [(f'data-{number}', part.name) for number, part in enumerate(page.parts, 1)]
    yield '<header>'
    yield '<h1>Evaluation report</h1>'
    yield f'<p class="lead">{_text(page.headline)}</p>'
    yield '<nav aria-label="Contents"><ul>'
    for name, title in links:
        yield f'<li><a href="#{name}">{_text(title)}</a></li>'
    yield '</ul></nav>'
    yield '</header>'


def _parts(page: Page) -> Iterator[str]:
    for number, part in enumerate(page.parts, 1):
        yield f'<section class="part" id="data-{number}">'
        yield f'<h2>{_text(part.name)}</h2>'
        yield f'<p class="lead">{_text(part.headline.removeprefix(f"{part.name}: "))}</p>'
        yield from _sections(part, level=3, prefix=f'data-{number}-')
        yield '</section>'


def _sections(page: Page, level: int, prefix: str = '') -> Iterator[str]:
    for section in page.sections:
        if _is_shown(section):
            yield f'<section class="{section.key}" id="{prefix}{section.key}">'
            yield f'<h{level}>{_text(section.title)}</h{level}>'
            yield from _beside(section)
            yield '</section>'


def _is_shown(section: Section) -> bool:
    return bool(section.blocks or section.pictures)


def _beside(section: Section) -> Iterator[str]:
    """Yields text and tables, with pictures beside them if there are any and the page is wide."""
    lines = (line for block in section.blocks for line in _block(block, section))
    if not section.pictures:
        yield from lines
        return
    yield '<div class="beside"><div>'
    yield from lines
    yield '</div><div class="figures">'
    for picture in section.pictures:
        style = ' class="photo"' if picture.is_photo else ''
        size = f'width="{picture.width}" height="{picture.height}"'
        alt = _text(picture.alt)
        yield f'<figure><img{style} src="{_text(picture.source)}" alt="{alt}" {size}></figure>'
    yield '</div></div>'


def _block(block: Block, section: Section) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block, block.title or section.title)
    elif isinstance(block, Items):
        yield f'<ul>{"".join(f"<li>{_text(item)}</li>" for item in block)}</ul>'
    else:
        yield from (f'<p class="note">{_text(line)}</p>' for line in block.split('\n'))


def _table(table: Table, name: str) -> Iterator[str]:
    """Yields a table in a box that scrolls if the table is too wide, also by keyboard."""
    yield f'<div class="table" role="region" aria-label="{_text(name)}" tabindex="0"><table>'
    if table.title:
        yield f'<caption>{_text(table.title)}</caption>'
    if table.head:
        yield '<thead><tr>'
        for text, side in zip(table.head, table.align, strict=True):
            # A header cell without a name would be announced by screen readers.
            yield f'<th scope="col"{_side(side)}>{_name(text)}</th>' if text else '<td></td>'
        yield '</tr></thead>'
    yield from _rows('tbody', table.rows, table.align)
    if table.foot:
        yield from _rows('tfoot', table.foot, table.align)
    yield '</table></div>'


def _rows(tag: str, rows: Sequence[Sequence[Cell]], align: str) -> Iterator[str]:
    yield f'<{tag}>'
    for first, *others in rows:
        cells = ''.join(map(_cell, others, align[1:]))
        yield f'<tr><th scope="row"{_side(align[0])}>{_name(first.text)}</th>{cells}</tr>'
    yield f'</{tag}>'


def _cell(cell: Cell, side: str) -> str:
    aside = f' <span class="aside">{_text(cell.aside)}</span>' if cell.aside else ''
    if cell.fraction is not None:
        shade = f'class="r shaded" style="--fraction:{cell.fraction:.3f}"'
        return f'<td {shade}>{_text(cell.text)}{aside}</td>'
    return f'<td{_side(side)}>{_name(cell.text)}{aside}</td>'


def _side(side: str) -> str:
    return ' class="r"' if side == 'r' else ''


def _name(text: str) -> str:
    """Returns a user's text for a table; long words may break."""
    is_long = max(map(len, text.split()), default=0) > _LONG
    return f'<span class="long">{_text(text)}</span>' if is_long else _text(text)


def _text(text: str) -> str:
    return html.escape(text)
