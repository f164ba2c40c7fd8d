"""Report sections: paragraphs and tables with formatted numbers, from the content of a report."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from thinkml.evaluation.report.content import percent
from thinkml.evaluation.report.page import Block, Cell, Items, Page, Section, Table
from thinkml.evaluation.result import number
from thinkml.task_types import TASK_TYPES

MAX_ROWS = 50  # of a table; with more, only the most important are shown
MAX_MATRIX = 20  # classes; with more, the confusion matrix is not written out
_SCORES = ('precision', 'recall', 'f1')

Content = Mapping[str, Any]


def lay_out(content: Content) -> Page:
    """Arranges the content from `describe_evaluation` or `describe_evaluations` as a page."""
    if 'data_sets' in content:
        parts = content['data_sets'].values()
        return Page('', content['headline'], [_comparison(content)], [lay_out(p) for p in parts])
    found = (
        _metrics(content),
        _warnings(content),
        _classes(content),
        _confusion(content),
        Section('curves', 'Curves', []),
        _calibration(content),
        _thresholds(content),
        _errors(content),
        _surprises(content),
        _examples(content),
        _slices(content),
        _origin(content),
    )
    sections = [section for section in found if section is not None]
    return Page(content['name'], content['headline'], sections)


def _metrics(content: Content) -> Section:
    intervals, base = content['confidence_intervals'], content['baseline']
    rows = [
        [Cell(name), _metric_cell(content, name), Cell(_value(base[name]) if name in base else '')]
        for name in content['metrics']
    ]
    head = ('', f'model [{_interval_name(content)}]' if intervals else 'model', 'baseline')
    table = Table(head, rows, 'lrr')
    return Section('metrics', 'Metrics', [table, '\n'.join(content['notes'])])


def _warnings(content: Content) -> Section | None:
    if not content['warnings']:
        return None
    return Section('warnings', 'Warnings', [Items(content['warnings'])])


def _classes(content: Content) -> Section | None:
    """Returns the table by class.

    With very many classes, the table has only the worst. For a task of elements it has those with
    the largest support, and a line on the others.
    """
    per_class, intervals = content['per_class'], content['per_class_intervals']
    if per_class is None:
        return None
    task_type = TASK_TYPES[content['task']]
    noun, nouns = task_type.nouns
    names, blocks, others = list(per_class), [], content['other_classes']
    if others is not None:
        names = others['shown']
        blocks.append(
            f'The {len(names)} of {len(per_class):,} {nouns} with the largest support. '
            'The line on the others has means of their scores and their total support:'
        )
    elif len(names) > MAX_ROWS:
        blocks.append(f'The {MAX_ROWS} of {len(names):,} {nouns} with the lowest F1:')
        names = sorted(names, key=lambda name: per_class[name]['f1'])[:MAX_ROWS]
    rows = [_score_row(name, per_class[name], intervals.get(name, {})) for name in names]
    if others is not None:
        name = f'{others["count"]:,} other {noun if others["count"] == 1 else nouns}'
        rows.append(_score_row(name, others, {}))
    means = {}
    if not task_type.has_positive_class:  # else the metrics are those of the positive class
        means = {'macro mean': content['confidence_intervals']}
    foot = [
        _score_row(name, mean, means.get(name, {})) for name, mean in content['averages'].items()
    ]
    head = (noun, *_SCORES, 'support')
    return Section('classes', f'By {noun}', [*blocks, Table(head, rows, 'lrrrr', foot=foot)])


def _score_row(name: str, row: Content, intervals: Content) -> list[Cell]:
    scores = [Cell(_score(row[s]), _interval(intervals.get(s), _score)) for s in _SCORES]
    return [Cell(name), *scores, Cell(_count(row['support']))]


def _confusion(content: Content) -> Section | None:
    matrix, classes = content['confusion_matrix'], content['classes']
    if matrix is None:
        return None
    if TASK_TYPES[content['task']].has_many_labels:
        return _label_confusion(content)
    if len(matrix) <= MAX_MATRIX:
        rows = [
            [Cell(name), *_shaded(counts)] for name, counts in zip(classes, matrix, strict=True)
        ]
        table = Table(
            ['', *classes],
            rows,
            align='l' + 'r' * len(classes),
            title='rows: true, columns: predicted',
            has_short_head=True,
        )
        return Section('confusion', 'Confusion matrix', [table])
    if not content['confusions']:
        return None
    rows = [
        [*_texts(row['true'], row['predicted'], _count(row['count'])), Cell(_score(row['share']))]
        for row in content['confusions']
    ]
    head = ('true', 'predicted', 'count', 'fraction of true')
    return Section('confusion', 'Most frequent confusions', [Table(head, rows, 'llrr')])


def _label_confusion(content: Content) -> Section:
    matrix, classes, blocks = content['confusion_matrix'], content['classes'], []
    found = list(zip(classes, matrix, strict=True))
    if len(found) > MAX_ROWS:
        blocks.append(f'The {MAX_ROWS} of {len(found):,} labels with the most errors:')
        found = sorted(found, key=lambda pair: -(pair[1][0][1] + pair[1][1][0]))[:MAX_ROWS]
    rows = [
        [Cell(name), *_shaded([tp, fn]), *_shaded([fp, tn])] for name, ((tn, fp), (fn, tp)) in found
    ]
    head = ('label', 'true positives', 'false negatives', 'false positives', 'true negatives')
    title = 'Right and wrong by label'
    return Section('confusion', title, [*blocks, Table(head, rows, 'lrrrr')])


def _shaded(counts: Sequence[float]) -> Iterator[Cell]:
    total = sum(counts) or 1
    return (Cell(_count(count), fraction=count / total) for count in counts)


def _calibration(content: Content) -> Section | None:
    found = content['calibration']
    if found is None:
        return None
    rows = [
        _texts(
            f'{row["low"]:.3f}-{row["high"]:.3f}',
            f'{row["count"]:,}',
            _value(row['mean_probability']),
            _value(row['share_true']),
        )
        for row in found['bins']
    ]
    target, true = {
        'binary': (f'class {(content["classes"] or [""])[-1]}', 'fraction of the class'),
        'multiclass': ('the predicted class', 'fraction right'),
        'multilabel': ('each label', 'fraction with the label'),
    }[content['task']]
    note = (
        f'Calibration of the probabilities of {target}, in {found["num_bins"]} bins. '
        f'Expected calibration error (ECE): {_value(found["ece"])}.'
    )
    table = Table(('probability', 'count', 'mean probability', true), rows, 'lrrr')
    return Section('calibration', 'Calibration', [table, note])


def _thresholds(content: Content) -> Section | None:
    found = content['thresholds']
    if found is None:
        return None
    scores = ('threshold', 'precision', 'recall', 'f1', 'specificity')
    rows = [_texts(row['rule'], *(_value(row[name]) for name in scores)) for row in found['rows']]
    table = Table(('', *scores), rows, 'lrrrrr')
    return Section('thresholds', 'Thresholds', [table, found['note']])


def _errors(content: Content) -> Section:
    found, task_type = content['errors'], TASK_TYPES[content['task']]
    if not task_type.is_classification:
        return _residuals(content)
    rows = found['rows']
    element = ('element',) if rows and 'element' in rows[0] else ()
    total = f'{content["num_elements"]:,} {"elements" if element else "rows"}'
    if task_type.has_many_labels:
        total = f'{content["num_elements"] * len(content["classes"]):,} labels of rows'
    if not rows:
        return Section('errors', 'Errors', [f'Predicted wrong: none of {total}.'])
    has_probabilities = rows[0]['probability'] is not None
    shown = 'the most confident' if has_probabilities else 'the first'
    note = f'Predicted wrong: {found["count"]:,} of {total}'
    note += f'; {shown}:' if len(rows) < found['count'] else ':'
    label = ('label',) if task_type.has_many_labels else ()
    probability = ('probability',) if has_probabilities else ()
    head = ('row', *element, *label, 'true', 'predicted', *probability)
    table = [_texts(*(_error_value(row[name]) for name in head)) for row in rows]
    align = 'r' + 'l' * (len(element) + len(label) + 2) + 'r' * has_probabilities
    title = 'Most confident errors' if has_probabilities else 'Errors'
    return Section('errors', title, [note, Table(_named(head, content), table, align)])


def _named(head: Sequence[str], content: Content) -> list[str]:
    """Returns the names of columns; the index of a token is its position."""
    has_positions = len(content['element_shape']) == 1
    return ['position' if has_positions and name == 'element' else name for name in head]


def _surprises(content: Content) -> Section | None:
    rows = content['surprises']
    if rows is None:
        return None
    names = ('row', 'element', 'true', 'predicted', 'probability', 'log_loss')
    table = [_texts(*(_error_value(row[name]) for name in names)) for row in rows]
    head = (*_named(names[:4], content), 'probability of true', 'log loss')
    note = 'The elements whose true class had the lowest probability.'
    return Section('surprises', 'Most surprising elements', [note, Table(head, table, 'rrllrr')])


def _examples(content: Content) -> Section | None:
    examples = content['examples']
    if examples is None:
        return None
    rows = [
        _texts(row['rank'], str(row['row']), _value(row['score']), f'{row["num_elements"]:,}')
        for row in examples['rows']
    ]
    head = ('', 'row', examples['score'], 'elements that count')
    return Section('examples', 'Best, median and worst rows', [Table(head, rows, 'lrrr')])


def _error_value(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return _value(value) if isinstance(value, float) else str(value)


def _residuals(content: Content) -> Section:
    rows = content['errors']['rows']
    if not rows:
        return Section('errors', 'Residuals', ['Every row was predicted exactly.'])
    is_one = content['num_outputs'] == 1
    element = ('element',) if 'element' in rows[0] else ()
    head = ('row', *element, *(() if is_one else ('target',)), 'true', 'predicted', 'residual')
    table = [_texts(*(_error_value(row[name]) for name in head)) for row in rows]
    note = 'A residual is the true value minus the predicted one.'
    if not is_one:
        note += " Ordered by size, in units of the target's RMSE."
    residuals = Table(_named(head, content), table, 'r' * len(head))
    return Section('errors', 'Largest residuals', [residuals, note])


def _slices(content: Content) -> Section | None:
    """Returns a table for each metric, with the slices below all rows."""
    slices = content['slices']
    if not slices:
        return None
    blocks: list[Block] = []
    if len(slices) > MAX_ROWS:
        blocks.append(f'The {MAX_ROWS} of {len(slices):,} slices with the largest gaps.')
    for name in content['metrics']:
        all_rows = _slice_row('all rows', content, name, '')
        largest = sorted(slices, key=lambda part: -abs(part['gaps'].get(name) or 0))[:MAX_ROWS]
        rows = [
            _slice_row(part['name'], part, name, _signed(part['gaps'].get(name)))
            for part in (slices if len(slices) <= MAX_ROWS else largest)
        ]
        blocks.append(Table(('slice', 'n', 'value', 'gap'), [all_rows, *rows], 'lrrr', title=name))
    return Section('slices', 'Slices', blocks)


def _slice_row(label: str, part: Content, metric: str, gap: str) -> list[Cell]:
    value = _metric_cell(part, metric)
    if not part.get('is_supported', True):
        value = Cell('too few rows')
    return [Cell(label), Cell(f'{part["num_rows"]:,}'), value, Cell(gap)]


def _comparison(content: Content) -> Section:
    """Returns the metrics of several data sets or heads, side by side."""
    parts = content['data_sets']
    names = dict.fromkeys(name for part in parts.values() for name in part['metrics'])
    rows = [[Cell('rows'), *(Cell(f'{part["num_rows"]:,}') for part in parts.values())]]
    for name in names:
        rows.append([Cell(name), *(_metric_cell(part, name) for part in parts.values())])
    table = Table(('', *parts), rows, 'l' + 'r' * len(parts))
    return Section('comparison', 'Side by side', [table])


def _metric_cell(part: Content, metric: str) -> Cell:
    """Returns a metric and its interval; empty if it was not computed."""
    if metric not in part['metrics']:
        return Cell('')
    interval = part['confidence_intervals'].get(metric)
    return Cell(_value(part['metrics'][metric]), _interval(interval))


def _origin(content: Content) -> Section:
    found = {
        **{f'data: {name}': value for name, value in content['data_fingerprint'].items()},
        **content['versions'],
        'seed': content['seed'],
    }
    rows = [
        _texts(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in found.items()
    ]
    return Section('origin', 'Data, versions, seed', [Table((), rows, 'll')])


def _texts(*texts: str) -> list[Cell]:
    return [Cell(text) for text in texts]


def _value(value: float | None) -> str:
    return 'undefined' if value is None else number(value)


def _score(value: float | None) -> str:
    return 'undefined' if value is None else f'{value:.3f}'


def _signed(value: float | None) -> str:
    return '' if value is None else f'{"+" if value >= 0 else "-"}{number(abs(value))}'


def _count(value: float) -> str:
    return f'{value:,.1f}'.removesuffix('.0')  # weights may add up to fractions


def _interval(bounds: Iterable[float | None] | None, form: Any = number) -> str:
    if bounds is None:
        return ''
    low, high = bounds
    return '' if low is None or high is None else f'[{form(low)}, {form(high)}]'


def _interval_name(content: Content) -> str:
    return f'{percent(content["confidence"])} interval'
