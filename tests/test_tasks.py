"""Task types: the objects behind the four kinds of tasks."""

import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax, softmax

from thinkml.core.objectives.losses import decides
from thinkml.errors import DataError
from thinkml.task_types import TASK_TYPES, kind_of_classes
from thinkml.tasks import Task

COLUMNS = np.random.default_rng(0).normal(0, 20, (50, 4))
COLUMNS[0] = 3.0  # equal outputs
ONE = COLUMNS[:, :1]
# Classes or labels, and the outputs of a model, for each kind.
CASES = {
    'one logit': ('binary', 2, ONE),
    'two logits': ('binary', 2, COLUMNS[:, :2]),
    'classes': ('multiclass', 4, COLUMNS),
    'labels': ('multilabel', 4, COLUMNS),
    'one label': ('multilabel', 1, ONE),
    'numbers': ('regression', 0, COLUMNS),
}
NO_AND_YES = {
    'one logit': np.hstack([-ONE, ONE]),
    'labels': np.stack([-COLUMNS, COLUMNS], axis=-1),
    'one label': np.stack([-ONE, ONE], axis=-1),
}
DECISIONS = {
    'one logit': (ONE[:, 0] > 0).astype(int),
    'two logits': COLUMNS[:, :2].argmax(1),
    'classes': COLUMNS.argmax(1),
    'labels': (COLUMNS > 0).astype(int),
    'one label': (ONE > 0).astype(int),
    'numbers': COLUMNS,
}
CLASSIFICATION = [name for name in CASES if name != 'numbers']


@pytest.mark.parametrize('name', CASES)
def test_outputs_are_decided(name):
    kind, _, outputs = CASES[name]
    np.testing.assert_array_equal(TASK_TYPES[kind].decide(outputs), DECISIONS[name])


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_probabilities_are_those_of_scipy(name):
    kind, num_classes, outputs = CASES[name]
    found = TASK_TYPES[kind].probabilities(outputs)
    logs = TASK_TYPES[kind].log_probabilities(outputs)
    if name in NO_AND_YES:
        expected, expected_logs = expit(NO_AND_YES[name]), log_expit(NO_AND_YES[name])
        expected = expected if name == 'one logit' else expected[..., 1]
    else:
        expected, expected_logs = softmax(outputs, axis=1), log_softmax(outputs, axis=1)
    assert found.shape == (len(outputs), num_classes)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(logs, expected_logs, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize('kind', ['regression', 'sequence'])
def test_numbers_and_sequences_have_no_probabilities(kind):
    found = TASK_TYPES[kind]
    for method in (found.probabilities, found.log_probabilities):
        with pytest.raises(DataError, match='no probabilit'):
            method(COLUMNS)


def test_a_task_of_sequences_keeps_its_blank():
    task = Task('sequence', None, 5, ignore_label=-100, blank_id=4)
    assert Task.from_dict(task.to_dict()) == task
    for blank_id in (5, -1, None):
        with pytest.raises(ValueError, match=r'is not (one of 5 outputs|a size)'):
            Task.from_dict(task.to_dict() | {'blank_id': blank_id})


@pytest.mark.parametrize('name', CASES)
def test_sizes_and_losses_fit_the_outputs(name):
    kind, num_classes, outputs = CASES[name]
    found, num_outputs = TASK_TYPES[kind], outputs.shape[1]
    assert found.num_classes(num_outputs) == num_classes
    assert (num_outputs in found.output_counts(num_classes)) == (name != 'numbers')
    assert found.has_yes_no_outputs(num_outputs) == (name in NO_AND_YES)
    # A loss decides as the task does, for any number of outputs that the task may have.
    loss = decides(found.default_loss(num_outputs))
    expected = 'sigmoid' if name in NO_AND_YES else found.decision
    assert loss == ('softmax' if name == 'two logits' else expected)


@pytest.mark.parametrize(
    ('answer', 'kinds'),
    [
        ('is_classification', {'binary', 'multiclass', 'multilabel'}),
        ('has_one_class', {'binary', 'multiclass'}),
        ('has_many_labels', {'multilabel'}),
        ('has_positive_class', {'binary'}),
        ('has_threshold', {'binary', 'multilabel'}),
        ('has_sequences', {'sequence'}),
    ],
)
def test_each_kind_says_what_its_targets_are(answer, kinds):
    assert {kind for kind, found in TASK_TYPES.items() if getattr(found, answer)} == kinds


def test_scores_rank_the_positive_class_or_each_class():
    ranked = {kind: ('no', 'yes')[found.ranked] for kind, found in TASK_TYPES.items()}
    both = ('no', 'yes')
    assert ranked == {
        'binary': ('yes',), 'multiclass': both, 'multilabel': both, 'regression': (), 'sequence': ()
    }  # fmt: skip


def test_a_task_has_the_type_of_its_kind():
    for kind, found in TASK_TYPES.items():
        assert found.kind == kind
        assert Task(kind, None, 1).type is found
    assert [kind_of_classes(k) for k in (1, 2, 3)] == ['multiclass', 'binary', 'multiclass']


def test_words_name_classes_labels_and_targets():
    tasks = (
        Task('binary', ('no', 'yes'), 1),
        Task('multiclass', (0, 1, 2), 3),
        Task('multilabel', (0,), 1),
        Task('regression', None, 1),
        Task('regression', None, 2),
        Task('sequence', None, 5, blank_id=0),
    )
    assert list(map(str, tasks)) == [
        'binary, 2 classes (no, yes)',
        'multiclass, 3 classes (0, 1, 2)',
        'multilabel, 1 label (0)',
        'regression, 1 target',
        'regression, 2 targets',
        'sequence, 5 classes (0 is the blank)',
    ]
