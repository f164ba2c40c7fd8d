import re
import sys

import pytest

from thinkml.errors import ConfigError
from thinkml.models.model_table import Table, flatten

ROWS = [
    {'version': 1, 'metrics': {'accuracy': 0.9, 'loss': 1.5e-07}, 'note': 'first'},
    {'version': 12, 'metrics': {'accuracy': 0.95123}, 'tags': ['production']},
]


def test_nested_dicts_become_dotted_columns():
    assert flatten({'a': 1, 'b': {'c': {'d': 2}, 'e': [{'f': 3}]}, 'g': {}}) == {
        'a': 1,
        'b.c.d': 2,
        'b.e': [{'f': 3}],
    }


def test_flattening_keeps_the_order_and_takes_any_key():
    assert list(flatten({2: {'z': 1, 'y': 2}, 'x': 3})) == ['2.z', '2.y', 'x']


def test_flattening_is_not_bounded_by_the_stack():
    deep = {'x': 1}
    for _ in range(3000):
        deep = {'a': deep}
    assert list(flatten(deep).values()) == [1]


def test_columns_are_in_order_of_first_appearance():
    table = Table.of(ROWS)
    assert table.columns == ('version', 'metrics.accuracy', 'metrics.loss', 'note', 'tags')
    assert len(table) == 2
    assert [row['version'] for row in table] == [1, 12]
    assert table['note'] == ['first', None]
    assert table == Table.of(ROWS) != Table.of(ROWS[:1])


def test_an_unknown_column_is_named_with_the_closest():
    with pytest.raises(KeyError, match=r"got 'nota'.*Did you mean 'note'"):
        Table.of(ROWS)['nota']


def test_text_is_aligned_and_missing_values_are_empty():
    lines = str(Table.of(ROWS)).splitlines()
    assert lines == [
        'version  metrics.accuracy  metrics.loss  note   tags',
        '      1            0.9000       1.5e-07  first',
        "     12            0.9512                       ['production']",
    ]
    assert repr(Table.of(ROWS)) == str(Table.of(ROWS))


def test_floats_have_four_digits():
    values = [0.123456, 123456.0, 1e-9, 0.0, float('nan'), float('-inf'), True, None, 7]
    shown = [line.strip() for line in str(Table.of([{'x': v} for v in values])).splitlines()]
    assert shown == ['x', '0.1235', '1.235e+05', '1e-09', '0.0000', 'nan', '-inf', 'True', '', '7']


def test_long_cells_are_cut_in_text_alone():
    table = Table.of([{'text': 'x' * 1000, 'list': list(range(1000))}])
    cells = re.split(r'  +', str(table).splitlines()[1])
    assert [len(cell) for cell in cells] == [40, 40]
    assert all(cell.endswith('...') for cell in cells)
    assert table['text'] == ['x' * 1000]


def test_cells_as_deep_as_json_can_be_are_shown():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert str(Table(('x',), [{'x': deep}])).splitlines()[1] == '[' * 37 + '...'


def test_values_cant_break_the_lines_or_write_to_the_terminal():
    text = str(Table.of([{'a\nb': 'one\ntwo\x1b[2J\u202e', 'c': 1}]))
    assert len(text.splitlines()) == 2
    assert all(line.isprintable() for line in text.splitlines())


def test_html_is_escaped():
    html = Table.of([{'<b>': '<script>alert(1)</script>', 'x': 0.5, 'y': None}])._repr_html_()
    assert '<script>' not in html and '<b>' not in html
    assert '&lt;script&gt;' in html and '0.5000' in html
    assert html.count('<td') == 3


@pytest.mark.parametrize('table', [Table((), []), Table(('a', 'b'), [])])
def test_a_table_without_rows_says_so(table):
    assert str(table).splitlines()[-1] == '(no rows)'
    assert len(table) == 0 and list(table) == []
    assert '<table' in table._repr_html_()
    assert table.to_pandas().shape == (0, len(table.columns))


def test_to_pandas_holds_the_same_values():
    frame = Table.of(ROWS).to_pandas()
    assert list(frame.columns) == list(Table.of(ROWS).columns)
    assert frame['version'].tolist() == [1, 12]
    assert frame['metrics.accuracy'].tolist() == [0.9, 0.95123]
    assert frame['metrics.loss'].isna().tolist() == [False, True]
    assert frame['tags'][1] == ['production']


def test_without_pandas_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ConfigError, match='pip install pandas'):
        Table.of(ROWS).to_pandas()
