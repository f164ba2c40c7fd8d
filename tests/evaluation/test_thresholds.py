"""The chosen threshold is the best one, by every objective."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as sk

from thinkml.errors import ConfigError, DataError, ThinkMLWarning
from thinkml.evaluation.threshold_choice import Threshold, choose_threshold
from thinkml.evaluation.threshold_counts import all_threshold_counts

from .make_evaluations import binary, classification, multilabel, regression

SETTINGS = {
    'f1': {},
    'youden': {},
    'cost': {'false_positive_cost': 2.0, 'false_negative_cost': 5.0},
    'precision': {'min_recall': 0.7},
    'recall': {'min_precision': 0.6},
}


def rows(n=60, seed=0, levels=12, weighted=False):
    """Returns labels, probabilities with ties, and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    probabilities = np.round(np.clip(0.25 * labels + rng.random(n) * 0.7, 0, 1) * levels) / levels
    return labels, probabilities, rng.integers(4, size=n) / 4 if weighted else None


def measured(labels, probabilities, weight, threshold):
    """Returns precision, recall, F1 and specificity at a threshold, by scikit-learn."""
    called = probabilities >= threshold
    settings = {'sample_weight': weight, 'zero_division': 0}
    return {
        'precision': sk.precision_score(labels, called, **settings),
        'recall': sk.recall_score(labels, called, **settings),
        'f1': sk.f1_score(labels, called, **settings),
        'specificity': sk.recall_score(labels, called, pos_label=0, **settings),
    }


def best_of_all(labels, probabilities, weight, objective):
    """Returns the best threshold, found by trying all from the highest down."""
    weight = np.ones(len(labels)) if weight is None else weight
    tried = []
    for threshold in [np.inf, *np.unique(probabilities[weight > 0])[::-1]]:
        found = measured(labels, probabilities, weight, threshold)
        called = probabilities >= threshold
        cost = weight @ (2.0 * (called & (labels == 0)) + 5.0 * (~called & (labels == 1)))
        value = {
            'f1': found['f1'],
            'youden': found['recall'] + found['specificity'] - 1,
            'cost': -cost,
            'precision': found['precision'] if found['recall'] >= 0.7 else -1,
            'recall': found['recall'] if found['precision'] >= 0.6 else -1,
        }[objective]
        tried.append((round(value, 12), found['recall'] * (objective == 'precision'), threshold))
    return max(tried, key=lambda one: one[:2])[2]


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('objective', SETTINGS)
def test_it_is_the_best_of_all(objective, weighted):
    for seed in range(5):
        labels, probabilities, weight = rows(40, seed, weighted=weighted)
        chosen = choose_threshold(
            binary(labels, probabilities, weight), objective, **SETTINGS[objective]
        )
        best = best_of_all(labels, probabilities, weight, objective)
        assert chosen.threshold == best, seed
        there = measured(labels, probabilities, weight, best)
        assert {name: getattr(chosen, name) for name in there} == pytest.approx(there)
        assert chosen.objective == objective


def test_equally_good_ones():
    evaluation = binary([0, 1, 0, 1, 0, 0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    # Both calls have recall 1 or precision 0.5: the highest threshold, or the one that finds more.
    assert choose_threshold(evaluation, 'recall', min_precision=0).threshold == 0.2
    same = binary([1, 0, 1, 0], [0.8, 0.6, 0.4, 0.2])
    assert choose_threshold(same, 'youden').threshold == 0.8
    assert choose_threshold(binary([1, 1, 0], [0.9, 0.8, 0.1]), 'precision', min_recall=0.1) == (
        Threshold(0.8, 1.0, 1.0, 1.0, 1.0, 'precision')
    )


def test_weights_that_are_no_round_numbers_are_ties_too():
    weight = np.full(10, 0.1)
    labels, probabilities = [1] * 7 + [0] * 3, np.linspace(0.9, 0.1, 10)
    chosen = choose_threshold(binary(labels, probabilities, weight), 'precision', min_recall=3 / 7)
    assert chosen.threshold == pytest.approx(probabilities[6])
    chosen = choose_threshold(binary(labels, probabilities, weight), 'recall', min_precision=0.7)
    assert chosen.recall == pytest.approx(1)


def test_it_may_cost_least_to_call_nothing_positive():
    evaluation = binary([0, 1, 1, 0], [0.2, 0.4, 0.6, 0.8])
    costs = {'false_positive_cost': 100, 'false_negative_cost': 0.1}
    chosen = choose_threshold(evaluation, 'cost', **costs)
    assert (chosen.threshold, chosen.recall, chosen.specificity) == (np.inf, 0, 1)


def test_each_label_has_its_own():
    evaluation = multilabel(n=50)
    chosen = choose_threshold(evaluation, 'youden')
    assert list(chosen) == ['red', 'green', 'blue']
    for index, one in enumerate(chosen.values()):
        column = evaluation.scored.labels[:, index], evaluation.probabilities[:, index]
        assert one == choose_threshold(binary(*column), 'youden')


def test_labels_on_which_none_can_be_chosen_are_left_out():
    evaluation = multilabel(n=50, metrics=['accuracy'])
    evaluation.scored.labels[:, 1] = 0
    with pytest.warns(ThinkMLWarning, match=r'1 of 3 labels .*\n.*green: it has no positive rows'):
        assert list(choose_threshold(evaluation)) == ['red', 'blue']


@pytest.mark.parametrize(
    ('labels', 'objective', 'settings', 'message'),
    [
        ([0, 0, 0], 'f1', {}, 'no positive rows'),
        ([1, 1, 1], 'youden', {}, 'no negative rows'),
        ([0, 1, 0], 'recall', {'min_precision': 0.9}, r'precision 0.9 \(at most 0.5\)'),
    ],
)
def test_data_on_which_none_can_be_chosen(labels, objective, settings, message):
    with pytest.raises(DataError, match=f'evaluation: it has .*{message}'):
        choose_threshold(binary(labels, [0.9, 0.5, 0.1]), objective, **settings)


@pytest.mark.parametrize(
    ('objective', 'settings', 'message'),
    [
        ('F1', {}, "objective: got 'F1', expected one of .* Did you mean 'f1'"),
        ('cost', {'false_positive_cost': 1}, 'false_negative_cost: got None, expected a number'),
        (
            'cost',
            {'false_positive_cost': -1, 'false_negative_cost': 1},
            'got -1, expected a number',
        ),
        ('precision', {'min_recall': 90}, 'min_recall: got 90, expected a fraction from 0 to 1'),
        (
            'recall',
            {'min_recall': 0.9},
            "min_recall: got 0.9, expected None: it is only for 'precision'",
        ),
        ('recall', {'min_recall': 0.9}, 'min_precision: got None'),
    ],
)
def test_settings_are_those_of_the_objective(objective, settings, message):
    with pytest.raises(ConfigError, match=message):
        choose_threshold(binary([0, 1], [0.2, 0.8]), objective, **settings)


def test_what_no_threshold_decides():
    with pytest.raises(ConfigError, match='choose_threshold: got a multiclass evaluation'):
        choose_threshold(classification())
    with pytest.raises(ConfigError, match=r'choose_threshold: .* regression model'):
        choose_threshold(regression())
    evaluation = binary([0, 1], [0.2, 0.8])
    data = dataclasses.replace(evaluation.scored, probabilities=None)
    with pytest.raises(ConfigError, match='a model without probabilities'):
        choose_threshold(dataclasses.replace(evaluation, scored=data))


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_ladders_are_the_curves_of_scikit_learn(dtype, weighted):
    labels, probabilities, weight = rows(weighted=weighted)
    probabilities = probabilities.astype(dtype)
    [counts] = all_threshold_counts(binary(labels, probabilities, weight).scored)
    x, y, thresholds = sk.roc_curve(
        labels, probabilities, sample_weight=weight, drop_intermediate=False
    )
    np.testing.assert_allclose(counts.false_positive_rate, x)
    np.testing.assert_allclose(counts.recall, y)
    np.testing.assert_array_equal(counts.thresholds, thresholds)
    precision, recall, thresholds = sk.precision_recall_curve(
        labels, probabilities, sample_weight=weight
    )
    np.testing.assert_allclose(counts.precision[1:], precision[-2::-1])
    np.testing.assert_allclose(counts.recall, recall[::-1])
    np.testing.assert_array_equal(counts.thresholds[1:], thresholds[::-1])
