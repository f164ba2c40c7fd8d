"""Report page: the sections, paragraphs and tables of a report before they are rendered."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: the value.
        aside: an addition to the value, such as its interval.
        fraction: the fraction of its row's total, from 0 to 1, for a shade behind it; None for no
            shade.
    """

    text: str
    aside: str = ''
    fraction: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it.

    Attributes:
        head: the names of the columns; empty if they need none.
        rows: rows of the same length.
        align: ``'l'`` or ``'r'`` for each column.
        title: the title of the table, if its section has several.
        foot: rows below a rule.
        has_short_head: True if names of columns may be cut to keep a text table narrow.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    align: str
    title: str = ''
    foot: Sequence[Sequence[Cell]] = ()
    has_short_head: bool = False


class Items(tuple[str, ...]):
    """Sentences in a bulleted list."""


class Picture(NamedTuple):
    """A plot.

    Attributes:
        source: a data URL.
        alt: a description, for people who cannot see it.
        width: the width in CSS pixels.
        height: the height in CSS pixels.
        is_photo: True if its colours stay the same on a dark page.
    """

    source: str
    alt: str
    width: int
    height: int
    is_photo: bool = False


Block = str | Table | Items


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of a report.

    Attributes:
        key: the name of the section, by which pictures are added.
        title: the heading.
        blocks: paragraphs (one for each line of a string), lists and tables. A section without
            content is left out.
        pictures: plots, which only a web page shows.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """A report as sections.

    Attributes:
        name: the name of the data set or head; empty if it has none.
        headline: the evaluation in one line.
        sections: the sections in order.
        parts: one page for each evaluation, in a report on several.
    """

    name: str
    headline: str
    sections: Sequence[Section]
    parts: 'Sequence[Page]' = ()
