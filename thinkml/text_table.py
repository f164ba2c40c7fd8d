"""Text tables: rows of cells as lines with aligned columns."""

from collections.abc import Collection, Sequence


def aligned_lines(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Returns a line for each row, with two spaces between columns of equal width.

    Args:
        rows: the cells, the same number in each row.
        right: the indices of columns that are aligned to the right, such as numbers.

    Example:
        >>> from thinkml.text_table import aligned_lines
        >>> for line in aligned_lines([('kernel', '108'), ('bias', '3')], right=[1]):
        ...     print(line)
        kernel  108
        bias      3
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
