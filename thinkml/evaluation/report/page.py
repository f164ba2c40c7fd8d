"""A report's parts, before they are text, Markdown or HTML: sections of paragraphs and tables."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """What stands in a table.

    Attributes:
        text: the value.
        aside: what goes with it, its interval for instance.
        share: of its row's total, from 0 to 1, for a shade behind it; None for none.
    """

    text: str
    aside: str = ''
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it.

    Attributes:
        head: the columns' names; empty where they need none.
        rows: all of one length.
        align: ``'l'`` or ``'r'`` for each column.
        title: says what the table holds, where its section has several.
        foot: rows below a rule.
        has_short_head: whether names of columns may be cut to keep a text table narrow.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    align: str
    title: str = ''
    foot: Sequence[Sequence[Cell]] = ()
    has_short_head: bool = False


class Items(tuple[str, ...]):
    """Sentences in a list with bullets."""


class Picture(NamedTuple):
    """A plot.

    Attributes:
        source: a data URL.
        alt: what it shows, for those who don't see it.
        width: in pixels of a page.
        height: the same.
    """

    source: str
    alt: str
    width: int
    height: int


Block = str | Table | Items


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of a report.

    Attributes:
        key: names it, for pictures to be put into it.
        title: what it is about.
        blocks: paragraphs (one for each line of a string), lists and tables. A section of nothing
            is left out.
        pictures: shown by a web page alone.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """A report, laid out.

    Attributes:
        name: of the data set; empty where it has none.
        headline: what was evaluated, in a line.
        sections: in order.
        parts: of a report on several data sets, one for each.
    """

    name: str
    headline: str
    sections: Sequence[Section]
    parts: 'Sequence[Page]' = ()
