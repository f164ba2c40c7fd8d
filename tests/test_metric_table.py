"""The metric table: each row has the computations that it lists, and no module has a second one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from thinkml.core.objectives import metric_entries, metric_table
from thinkml.core.objectives.metric_table import (
    METRIC_TABLE,
    check_metric,
    class_position,
    is_higher_better,
    metric_names,
    metric_number,
    metric_spec,
)
from thinkml.core.objectives.streaming_metrics import make_metrics
from thinkml.evaluation.metrics import registry
from thinkml.tasks import TaskKind

ROOT = Path(__file__).parent.parent
TABLE = 'thinkml/core/objectives/metric_table.py'
OTHER_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'thinkml').rglob('*.py')
    if path != ROOT / TABLE
)
KINDS = get_args(TaskKind)
WITH_NUMBER = {
    'top_k_accuracy': ('top_3_accuracy', 3),
    'psnr': ('psnr_255', 255),
    'ssim': ('ssim_255', 255),
    'pinball_q': ('pinball_0.9', 0.9),
    'interval_score_level': ('interval_score_0.8', 0.8),
}
WITH_CLASS = {'iou_<class>': 'iou_3'}
CLASSES = tuple(range(9))


def names_of(spec):
    """Returns the names of a row that users can pass."""
    names = [spec.name] if spec.name in metric_names() else []
    if spec.has_class:
        return [WITH_CLASS[spec.name]]
    return [*names, WITH_NUMBER[spec.name][0]] if spec.pattern else names


def test_each_name_has_one_row():
    assert len(metric_table._SPECS) == len(METRIC_TABLE)
    with_pattern = {spec.name: spec.has_class for spec in METRIC_TABLE.values() if spec.pattern}
    expected = dict.fromkeys(WITH_NUMBER, False) | dict.fromkeys(WITH_CLASS, True)
    assert with_pattern == expected


@pytest.mark.parametrize('spec', METRIC_TABLE.values(), ids=lambda spec: spec.name)
def test_each_row_has_the_computations_that_it_lists(spec):
    assert names_of(spec)
    for name in names_of(spec):
        assert metric_spec(name) is spec
        for kind in KINDS:
            fits = kind in spec.tasks
            is_recorded = check_metric(name, kind, num_outputs=9, classes=CLASSES) is None
            assert is_recorded is (spec.in_training and fits)
            if is_recorded:
                make_metrics(
                    (name,), kind=kind, num_outputs=9, capacity=8, classes=CLASSES, blank_id=0
                )
            metric = registry.get_metric(name, kind, CLASSES)
            assert (metric is not None) is (spec.in_evaluation and fits)
            if metric is not None:
                assert metric.kinds == spec.tasks
                assert metric.higher_is_better is spec.higher_is_better
                assert metric.default is spec.is_default
                assert metric.needs_probabilities is spec.needs_probabilities


def test_each_computation_has_a_row():
    rows = METRIC_TABLE.values()
    streaming = {spec.base_name for spec in rows if spec.in_training}
    exact = {spec.base_name for spec in rows if spec.in_evaluation}
    assert set(metric_entries._COMPUTATIONS) == streaming
    assert registry._COMPUTATIONS.keys() | registry._FRACTIONS.keys() <= exact


@pytest.mark.parametrize(('family', 'name', 'number'), [(k, *v) for k, v in WITH_NUMBER.items()])
def test_a_name_with_a_number_has_the_row_of_its_family(family, name, number):
    assert metric_spec(name) is METRIC_TABLE[family]
    assert metric_number(name) == number


@pytest.mark.parametrize(
    'name',
    [
        'pinball_q', 'pinball', 'pinball_2', 'interval_score_level', 'top_0_accuracy', 'loss',
        'iou_<class>', 'iou_',
    ],
)  # fmt: skip
def test_other_names_have_no_row(name):
    assert metric_spec(name) is None
    assert metric_number(name) is None


def test_a_class_is_found_by_its_label_and_not_by_its_position():
    assert class_position('iou_2', (1, 2, 5)) == 1
    assert class_position('iou_traffic light', ('car', 'traffic light')) == 1
    assert class_position('iou_True', (False, True)) == 1
    assert class_position('iou_macro', ('macro',)) is class_position('psnr_2', (2,)) is None
    assert metric_spec('iou_macro').average == 'macro'
    assert is_higher_better('val_iou_cat') is True
    names = [f'iou_{label}' for label in (1, 2, 5)]
    expected = f"metrics: got 'iou_0', which is no class; expected one of {', '.join(names)}."
    assert check_metric('iou_0', 'multiclass', 3, classes=(1, 2, 5)) == expected


def test_names_are_selected_by_task_and_use():
    of_training = ('roc_auc_binned', 'grad_norm', 'update_ratio')
    assert metric_names(in_training=True, in_evaluation=False) == of_training
    assert metric_number('top_k_accuracy') == 5
    assert 'top_k_accuracy' in metric_names('multiclass', in_training=True)
    assert 'top_k_accuracy' not in metric_names('binary', in_training=True)
    assert 'mcc' not in metric_names(in_training=True)


def listed_directions(source: str) -> Iterator[str]:
    """Yields the places of a module that say for a name if larger values are better."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.keyword(arg=str(name), value=ast.Constant()):
                names = [name]
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                names = [
                    str(key.value)
                    for key, value in pairs
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
                ]
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ):
                is_list = isinstance(value, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.Call)
                names = [name] if is_list else []
            case _:
                continue
        for name in names:
            if re.search('better|higher_is|lower_is', name.lower()):
                yield f'{node.lineno}: {name}'


@pytest.mark.parametrize('path', OTHER_FILES)
def test_no_other_module_lists_a_direction(path):
    assert list(listed_directions((ROOT / path).read_text())) == []


@pytest.mark.parametrize(
    'source',
    [
        "_LOWER_IS_BETTER = frozenset({'loss', 'mse'})",
        "lower_is_better: set[str] = {'loss', 'mse'}",
        "lower = {'kinds': (), 'higher_is_better': False}",
        'Metric(errors, rmse, higher_is_better=False)',
    ],
)
def test_a_listed_direction_is_found(source):
    assert len(list(listed_directions(source))) == 1


@pytest.mark.parametrize(
    ('page', 'names'),
    [
        ('training', metric_names(in_training=True)),
        ('evaluation', metric_names(in_evaluation=True)),
    ],
)
def test_pages_list_the_names_of_the_table(page, names):
    text = (ROOT / f'docs/guides/{page}/metrics.md').read_text()
    listed = set(re.findall(r'`(\w+)`', text))
    assert {METRIC_TABLE[name].base_name for name in names} <= listed
