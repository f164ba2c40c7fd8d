"""Reports on rows with a target for each token or pixel."""

import numpy as np
import pytest
from flax import nnx
from matplotlib.colors import to_rgb
from sklearn.metrics import precision_recall_fscore_support

from thinkml.errors import ConfigError, DataError
from thinkml.evaluation import ModelEvaluator, Report
from thinkml.evaluation.plots import example_images
from thinkml.evaluation.plots.axes import PALE
from thinkml.evaluation.report.example_rows import example_rows
from thinkml.figures import COLOURS

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


# --- pixels -----------------------------------------------------------------------------------

HIGH, WIDE, IMAGES = 8, 10, 11


def masks(weight=None):
    """Returns masks with ignored pixels, and their evaluation; row 3 has no pixel that counts."""
    y = RNG.integers(0, 3, (IMAGES, HIGH, WIDE))
    strength = np.linspace(0, 5, IMAGES)[:, None, None, None]
    outputs = RNG.normal(size=(*y.shape, 3)) + strength * np.eye(3)[y]
    y = np.where(RNG.random(y.shape) < 0.3, -100, y)
    y[3] = -100
    return y, evaluated(outputs, y, sample_weight=weight)


def colours(shape=(IMAGES, HIGH, WIDE, 3)):
    """Returns images that are predicted with more and more noise, and their evaluation."""
    y = RNG.random(shape)
    noise = np.linspace(0.1, 1, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return y, evaluated(y + noise * RNG.normal(size=shape), y)


def drawn(evaluation, inputs=None):
    """Returns the arrays that are drawn, by row and name."""
    examples = example_rows(evaluation)
    figure = example_images(evaluation, examples, inputs)
    names = ['target', 'prediction'] if inputs is None else ['input', 'target', 'prediction']
    arrays = [ax.images[0].get_array() for ax in figure.axes if ax.get_label() != '<colorbar>']
    rows = [example['row'] for example in examples['rows']]
    assert len(arrays) == len(rows) * len(names)
    return {
        (row, name): arrays[place * len(rows) + column]
        for place, name in enumerate(names)
        for column, row in enumerate(rows)
    }


def by_hand(scores, rows):
    """Returns the rows of the best, median and worst scores, all of them different."""
    order = sorted(rows, key=lambda row: -scores[row])
    middle = (len(order) - 2) // 2
    return order[:2] + order[middle : middle + 2] + order[-2:]


def test_rows_of_pixels_are_ranked_by_the_accuracy_of_those_that_count():
    weight = RNG.integers(0, 3, (IMAGES, HIGH, WIDE)).astype(float)
    for weights in (None, weight):
        y, found = masks(weights)
        counted = (y >= 0) * (np.ones(y.shape) if weights is None else weights)
        right = (found.predictions == y) * counted
        rows = [row for row in range(IMAGES) if row != 3]
        accuracy = {row: right[row].sum() / counted[row].sum() for row in rows}
        examples = example_rows(found)
        assert [example['row'] for example in examples['rows']] == by_hand(accuracy, rows)
        ranks = [example['rank'] for example in examples['rows']]
        assert ranks == ['best'] * 2 + ['median'] * 2 + ['worst'] * 2
        for example in examples['rows']:
            row = example['row']
            np.testing.assert_allclose(example['score'], accuracy[row])
            assert example['num_elements'] == (counted[row] > 0).sum()
        lines = str(Report(found)).split('Best, median and worst rows\n')[1].split('\n')
        first = examples['rows'][0]
        cells = ['best', str(first['row']), f'{first["score"]:.4f}', str(first['num_elements'])]
        assert lines[1].split() == cells


def test_rows_of_numbers_are_ranked_by_their_mean_squared_error():
    y, found = colours()
    mse = np.square(found.predictions - y).mean(axis=(1, 2, 3))
    examples = Report(found).to_dict()['examples']
    assert examples['score'] == 'mse'
    assert [each['row'] for each in examples['rows']] == by_hand(-mse, range(IMAGES))
    for each in examples['rows']:
        np.testing.assert_allclose(each['score'], mse[each['row']], rtol=1e-5)


@pytest.mark.parametrize(('count', 'ranks'), [(1, 'b'), (2, 'bw'), (3, 'bmw'), (5, 'bmw')])
def test_each_of_few_rows_is_shown_once(count, ranks):
    _, found = colours((count, HIGH, WIDE, 3))
    examples = example_rows(found)['rows']
    assert ''.join(each['rank'][0] for each in examples) == ranks
    assert len({each['row'] for each in examples}) == len(ranks)


def test_pictures_show_target_and_prediction_and_mark_the_pixels_that_do_not_count():
    weight = RNG.integers(0, 2, (IMAGES, HIGH, WIDE)).astype(float)
    y, found = masks(weight)
    counted = (y >= 0) & (weight > 0)
    inputs = RNG.random((IMAGES, 4, 5))
    for (row, name), array in drawn(found, inputs).items():
        if name == 'input':
            np.testing.assert_array_equal(array, inputs[row])
        else:
            labels = y if name == 'target' else found.predictions
            np.testing.assert_array_equal(array, np.where(counted, labels, -1)[row])


def test_pictures_of_numbers_have_their_colours_and_grey_pixels_without_weight():
    y, found = colours()
    for (row, name), array in drawn(found).items():
        values = y if name == 'target' else found.predictions
        np.testing.assert_allclose(array, np.clip(values[row], 0, 1), atol=1e-6)
    weight = np.ones((IMAGES, HIGH, WIDE))
    weight[:, 0] = 0
    y = RNG.normal(size=(IMAGES, HIGH, WIDE, 1))
    for (row, name), array in drawn(evaluated(y, y, sample_weight=weight)).items():
        assert np.isnan(np.ma.filled(array, np.nan)[0]).all(), name
        np.testing.assert_allclose(array[1:], y[row, 1:, :, 0], rtol=1e-6)


def test_a_matrix_of_numbers_a_row_is_an_image_and_a_small_one_is_not():
    y = RNG.normal(size=(IMAGES, HIGH, WIDE))
    found = evaluated(y, y)
    assert found.task.element_shape == (HIGH,)
    for (row, _), array in drawn(found).items():
        np.testing.assert_allclose(array, y[row], rtol=1e-6)
    small = evaluated(y[:, :5], y[:, :5])
    tokens = evaluated(RNG.normal(size=(9, 7, 8)), RNG.integers(0, 8, (9, 7)))
    for other in (small, tokens):
        report = Report(other)
        assert report.to_dict()['examples'] is None
        assert 'class="photo"' not in report.to_html()


def test_pictures_of_several_labels_mix_their_colours():
    y = RNG.integers(0, 2, (IMAGES, HIGH, WIDE, 2))
    y[0, 0, :4] = [[0, 0], [1, 0], [0, 1], [1, 1]]
    weight = np.ones((IMAGES, HIGH, WIDE))
    weight[:, 1] = 0
    outputs = 2 * y - 1 + np.linspace(0, 2, IMAGES)[:, None, None, None] * RNG.normal(size=y.shape)
    found = evaluated(outputs, y, sample_weight=weight)
    assert found.task.kind == 'multilabel'
    examples = example_rows(found)
    right = (found.predictions == y).all(axis=-1)[:, weight[0, :, 0] > 0].mean(axis=(1, 2))
    assert [each['row'] for each in examples['rows']] == by_hand(right, range(IMAGES))
    first, second = (np.array(to_rgb(colour)) for colour in COLOURS[:2])
    of_labels = np.array([[np.ones(3), second], [first, (first + second) / 2]])
    for (row, name), array in drawn(found).items():
        labels = y if name == 'target' else found.predictions
        expected = of_labels[labels[row, ..., 0], labels[row, ..., 1]]
        expected[1] = to_rgb(PALE)
        np.testing.assert_allclose(array, expected, atol=1e-6)
    (legend,) = example_images(found, examples).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ['none', '0', '1', '0 + 1', 'does not count']
    assert 'class="photo"' in Report(found).to_html()


def test_the_web_page_embeds_the_pictures():
    y, found = masks()
    for inputs, alt in ((None, 'Targets and predictions'), (y / 2, 'Inputs, targets and pred')):
        page = ModelEvaluator().generate_report(found, inputs).to_html()
        assert '<img class="photo" src="data:image/png;base64,' in page
        assert f'alt="{alt}' in page
    both = {'a': found, 'b': found}
    page = ModelEvaluator().generate_report(both, inputs={'b': y}).to_html()
    assert page.count('alt="Targets and') == 1 and page.count('alt="Inputs, targets') == 1


@pytest.mark.parametrize(
    ('inputs', 'error', 'message'),
    [
        (np.zeros((IMAGES, 4)), DataError, r'inputs: got shape \(11, 4\), expected \(11, height'),
        (np.zeros((3, 4, 4)), DataError, r'inputs: got shape \(3, 4, 4\)'),
        (np.zeros((IMAGES, 4, 4, 2)), DataError, 'with 1 or 3 channels'),
        ({'b': np.zeros((IMAGES, 4, 4))}, ConfigError, "inputs: got some for 'b'"),
    ],
)
def test_inputs_that_are_not_the_evaluated_images_are_refused(inputs, error, message):
    _, found = masks()
    with pytest.raises(error, match=message):
        ModelEvaluator().generate_report({'a': found}, inputs)


def test_inputs_are_refused_where_no_targets_are_images():
    found = evaluated(RNG.normal(size=(9, 3)), RNG.integers(0, 3, 9))
    with pytest.raises(ConfigError, match='inputs: got inputs, but the targets are not images'):
        ModelEvaluator().generate_report(found, np.zeros((9, 4, 4)))
