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
