"""Reports on rows with a target for each token or pixel."""

import numpy as np
from flax import nnx
from sklearn.metrics import precision_recall_fscore_support

from thinkml.evaluation import ModelEvaluator, Report

RNG = np.random.default_rng(0)
ROWS, TOKENS, WORDS, SHOWN = 40, 30, 200, 30


class Known(nnx.Module):
    """Returns its inputs, so that a test chooses the outputs."""

    def __call__(self, x):
        return x


def evaluated(outputs, targets, **settings):
    outputs = np.asarray(outputs, np.float32)
    settings = {'confidence': None, **settings}
    return ModelEvaluator().evaluate(Known(), outputs, targets, **settings)


def language_model():
    """Returns an evaluation of words whose frequencies differ; some do not occur."""
    frequency = 1 / np.arange(1, WORDS + 1)
    y = RNG.choice(WORDS, (ROWS, TOKENS), p=frequency / frequency.sum())
    y[:, -3:] = -100
    outputs = RNG.normal(size=(*y.shape, WORDS)) + 4 * np.eye(WORDS)[np.maximum(y, 0)]
    return y, evaluated(outputs, y, metrics=['accuracy'])


# --- classes ----------------------------------------------------------------------------------


def test_the_table_has_the_classes_with_the_largest_support_and_a_line_on_the_others():
    y, found = language_model()
    report = Report(found)
    content = report.to_dict()
    assert list(content['per_class']) == [str(word) for word in range(WORDS)]

    truth, predicted = y[y >= 0], found.predictions[y >= 0]
    support = np.bincount(truth, minlength=WORDS)
    order = np.argsort(-support, kind='stable')
    others = content['other_classes']
    assert others['shown'] == [str(word) for word in order[:SHOWN]]
    rest = np.intersect1d(order[SHOWN:], np.union1d(truth, predicted))
    assert len(rest) < WORDS - SHOWN
    *means, _ = precision_recall_fscore_support(
        truth, predicted, labels=rest, average='macro', zero_division=0
    )
    np.testing.assert_allclose([others[name] for name in ('precision', 'recall', 'f1')], means)
    assert others['count'] == WORDS - SHOWN and others['support'] == support[order[SHOWN:]].sum()

    text = str(report)
    table = text[text.index('\nclass ') :].split('\n\n')[0].split('\n')[2:]
    assert [line.split()[0] for line in table[:-1]] == others['shown']
    cells = [*(f'{mean:.3f}' for mean in means), str(others['support'])]
    assert table[-1].split() == ['170', 'other', 'classes', *cells]
    assert f'| 170 other classes | {" | ".join(cells)} |' in report.to_markdown()
    assert '170 other classes</th>' in report.to_html()


def test_few_classes_are_all_shown():
    y = RNG.integers(0, SHOWN, (ROWS, TOKENS))
    content = Report(evaluated(RNG.normal(size=(*y.shape, SHOWN)), y)).to_dict()
    assert content['other_classes'] is None and len(content['per_class']) == SHOWN


# --- tokens -----------------------------------------------------------------------------------


def test_the_most_surprising_tokens_are_those_whose_label_was_least_probable():
    y = np.where(RNG.random((ROWS, TOKENS)) < 0.2, -100, RNG.integers(0, 4, (ROWS, TOKENS)))
    outputs = RNG.normal(size=(*y.shape, 4), scale=3).astype(np.float32)
    outputs[0, 0], y[0, 0] = (90, 0, 0, 0), 3  # its probability rounds to 0
    outputs[1, 1], y[1, 1] = (120, 0, 0, 0), 3
    weight = np.ones(y.shape)
    weight[2, 2], y[2, 2], outputs[2, 2] = 0, 1, (0, -200, 0, 0)
    found = evaluated(outputs, y, sample_weight=weight)
    surprises = Report(found).to_dict()['surprises']

    logits = outputs.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(log_p, np.maximum(y, 0)[..., None], axis=-1)[..., 0]
    loss[(y == -100) | (weight == 0)] = -1
    order = np.argsort(-loss, axis=None)[:10]
    places = [(row['row'], int(row['element'])) for row in surprises]
    assert places == list(zip(*np.unravel_index(order, y.shape), strict=True))
    assert places[:2] == [(1, 1), (0, 0)]
    np.testing.assert_allclose([row['log_loss'] for row in surprises], loss.flat[order], rtol=1e-6)
    for place, row in zip(places, surprises, strict=True):
        assert row['true'] == str(y[place]) and row['predicted'] == str(found.predictions[place])
        np.testing.assert_allclose(row['probability'], np.exp(-loss[place]), rtol=1e-5)
    lines = str(Report(found)).split('Most surprising elements\n')[1].split('\n')
    assert lines[2].split()[:4] == ['row', 'position', 'true', 'predicted']
    assert lines[3].split()[:4] == ['1', '1', '3', '0'] and lines[3].split()[-1] == '120.0000'


def test_only_tokens_with_probabilities_are_surprising():
    y = RNG.integers(0, 3, (ROWS, 4, 5))
    pixels = evaluated(RNG.normal(size=(*y.shape, 3)), y)
    rows = evaluated(RNG.normal(size=(ROWS, 3)), y[:, 0, 0])
    numbers = evaluated(RNG.normal(size=(ROWS, 4, 2)), RNG.normal(size=(ROWS, 4, 2)))
    for found in (pixels, rows, numbers):
        report = Report(found)
        assert report.to_dict()['surprises'] is None and 'surprising' not in str(report)
