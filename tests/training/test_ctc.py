"""Trainings on sequences of labels that no frame is aligned to, with the CTC loss."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from thinkml.core.objectives.ctc import best_path, equal_sequences
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import ModelManager, predict, predict_proba
from thinkml.training import CTC, MixUp, ModelTrainer, TrainingConfig

ROWS, FRAMES, FEATURES, CLASSES, BLANK = 12, 8, 4, 5, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, FRAMES, FEATURES)).astype(np.float32)
LABELS = [RNG.choice([0, 1, 3, 4], size) for size in RNG.integers(1, 5, ROWS)]
LABELS[1], LABELS[2] = np.array([3, 3, 1]), np.array([], np.int64)
LENGTHS = RNG.integers(5, FRAMES + 1, ROWS)  # of one batch, padded to 8 positions
LENGTHS[0] = FRAMES
SETTINGS = {
    'epochs': 20, 'batch_size': ROWS, 'learning_rate': 0.1, 'optimizer': 'sgd',
    'validation_split': 0,
}  # fmt: skip


class Frames(nnx.Module):
    """Returns the logits of each frame; with ``stride`` 3, of each third one."""

    def __init__(self, stride=1):
        self.out = nnx.Linear(FEATURES, CLASSES, rngs=nnx.Rngs(0))
        self.stride = stride

    def __call__(self, x):
        return self.out(x[:, :: self.stride])


class Masked(Frames):
    """The same, with a mask of positions."""

    def __call__(self, x, mask):
        return super().__call__(x * mask[..., None])


def padded(labels, fill=-100):
    width = max(map(len, labels))
    return np.array([[*row, *[fill] * (width - len(row))] for row in labels], np.int64)


def train(model, x=X, y=LABELS, settings=None, **more):
    more = {'loss_fn': CTC(blank_id=BLANK), **more}
    config = TrainingConfig(**SETTINGS | (settings or {}))
    return model, ModelTrainer(config).train(model, x, y, progress=False, **more)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_close(a, b, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), a, b)


def by_hand(model, lengths, rate=0.1, steps=20):
    """Returns the losses and parameters of a loop that passes paddings to optax."""
    graph, params = nnx.split(model, nnx.Param)
    y = padded(LABELS)
    paddings = (np.arange(FRAMES) >= lengths[:, None]).astype(np.float32), (y < 0) * 1.0

    @jax.jit
    def step(params):
        def loss_of(params):
            logits = nnx.merge(graph, params)(X)
            frames, labels = paddings
            return optax.ctc_loss(logits, frames, np.maximum(y, 0), labels, blank_id=BLANK).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        return loss, jax.tree.map(lambda p, g: p - rate * g, params, grads)

    losses = []
    for _ in range(steps):
        loss, params = step(params)
        losses.append(float(loss))
    return losses, nnx.to_pure_dict(params)


def by_torch(logits, lengths):
    """Returns the mean of torch's losses."""
    import torch

    labels = [torch.tensor(row) for row in LABELS]
    loss_fn = torch.nn.CTCLoss(blank=BLANK, reduction='none')
    losses = loss_fn(
        torch.tensor(np.asarray(jax.nn.log_softmax(logits))).transpose(0, 1),
        torch.cat(labels),
        torch.tensor(lengths),
        torch.tensor([len(row) for row in labels]),
    )
    return losses.numpy().mean()


def decoded(logits, lengths=None):
    """Returns the labels of the best path of each row, by hand."""
    lengths = [None] * len(logits) if lengths is None else lengths
    paths = [row[:n] for row, n in zip(np.asarray(logits).argmax(-1), lengths, strict=True)]
    return [[label for label, _ in itertools.groupby(path) if label != BLANK] for path in paths]


def assert_sequences(found, expected):
    assert [row.tolist() for row in found] == [list(map(int, row)) for row in expected]


def sequences_of(lengths=LENGTHS):
    return [row[:length] for row, length in zip(X, lengths, strict=True)]


@pytest.mark.parametrize('form', ['lists', 'array'])
def test_it_trains_as_a_loop_written_by_hand(form):
    y = LABELS if form == 'lists' else padded(LABELS, fill=-1)
    lengths = np.full(ROWS, FRAMES)
    model, history = train(Frames(), y=y, ignore_label=None if form == 'lists' else -1)
    losses, params = by_hand(Frames(), lengths)
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
    assert_close(params_of(model), params, 1e-5)
    np.testing.assert_allclose(losses[0], by_torch(Frames()(X), lengths), rtol=1e-6)
    assert str(record_of(model).task) == 'sequence, 5 classes (2 is the blank)'


def test_frames_of_padding_do_not_count():
    model, history = train(Masked(), sequences_of(), metrics=['exact_match'])
    losses, params = by_hand(Frames(), LENGTHS)
    np.testing.assert_allclose(history['loss'], losses, rtol=1e-6)
    assert_close(params_of(model), params, 1e-5)
    np.testing.assert_allclose(losses[0], by_torch(Frames()(X), LENGTHS), rtol=1e-6)
    logits = model.out(X)
    assert_sequences(predict(model, sequences_of()), decoded(logits, LENGTHS))
    assert decoded(logits, LENGTHS) != decoded(logits)


@pytest.mark.parametrize('stride', [1, 3])
def test_predictions_metrics_and_evaluations(stride, tmp_path):
    x, model, frames = sequences_of(), Masked(stride), -(-LENGTHS // stride)
    expected = decoded(model.out(X[:, ::stride]), frames)
    # Some labels are those of the untrained model, which has few frames for the others.
    labels = [
        own if index % 2 and len(own) else [1] for index, own in enumerate(expected)
    ]  # fmt: skip
    matches = np.array([own == truth for own, truth in zip(expected, labels, strict=True)])
    assert 0 < matches.mean() < 1
    settings = {'epochs': 1, 'learning_rate': 1e-12, 'batch_size': 5}
    _, history = train(model, x, labels, settings, X_val=x, y_val=labels, metrics=['exact_match'])
    assert_sequences(predict(model, x), expected)
    for name in ('exact_match', 'val_exact_match'):
        np.testing.assert_allclose(history[name], [matches.mean()], rtol=1e-6)
    np.testing.assert_allclose(history['val_loss'], history['loss'], rtol=1e-6)
    weight = RNG.random(ROWS)
    found = ModelEvaluator().evaluate(model, x, labels, sample_weight=weight)
    np.testing.assert_allclose(found['exact_match'], np.average(matches, weights=weight))
    low, high = found.confidence_intervals['exact_match']
    assert low < found['exact_match'] < high
    assert_sequences([row[row != -100] for row in found.predictions], expected)
    analysis = ModelEvaluator().analyze_performance(model, x, labels)
    np.testing.assert_allclose(analysis.get_metrics()['exact_match'], matches.mean())
    ModelManager(tmp_path).save_model(model, 'kept')
    loaded = ModelManager(tmp_path).load_model('kept')
    assert record_of(loaded).task == record_of(model).task
    assert_sequences(predict(loaded, x), expected)


@pytest.mark.parametrize('parts', [2, 4])
def test_the_parts_of_a_batch_do_not_change_the_parameters(parts):
    whole, history = train(Frames())
    settings = {'accumulate_steps': parts, 'batch_size': ROWS // parts}
    in_parts, of_parts = train(Frames(), settings=settings)
    np.testing.assert_allclose(of_parts['loss'], history['loss'], rtol=1e-5)
    assert_close(params_of(in_parts), params_of(whole), 1e-5)


class Sowing(Masked):
    """Sows the mean square of its inputs."""

    def __call__(self, x, mask):
        self.sow(nnx.Intermediate, 'size', (x**2).mean())
        return super().__call__(x, mask)


def test_values_that_the_model_sows_are_added_to_the_loss():
    x, settings = sequences_of(), {'epochs': 1, 'learning_rate': 1e-12}
    _, history = train(Sowing(), x, settings=settings | {'aux_losses': {'size': 0.5}})
    size = sum((row**2).sum() for row in x) / X.size
    expected = by_torch(Frames()(X), LENGTHS) + 0.5 * size
    np.testing.assert_allclose(history['loss'], [expected], rtol=1e-6)


class TwoFrames(Masked):
    """Returns two frames for each position."""

    def __call__(self, x, mask):
        return jnp.repeat(super().__call__(x, mask), 2, axis=1)


def test_models_of_more_frames_than_positions():
    lengths = np.array([5, 18, 18, 6])  # padded to 8 and 18 positions
    x = [RNG.normal(size=(length, FEATURES)).astype(np.float32) for length in lengths]
    labels = [np.resize([1, 3, 4], length) for length in (10, 18, 7, 12)]
    settings = {'epochs': 1, 'learning_rate': 1e-12, 'batch_size': 2}
    model, history = train(TwoFrames(), x, labels, settings)
    losses = []
    for row, of_row in zip(x, labels, strict=True):
        logits = jnp.repeat(model.out(row), 2, axis=0)[None]
        no_padding = jnp.zeros((1, 2 * len(row))), jnp.zeros((1, len(of_row)))
        losses += optax.ctc_loss(
            logits, no_padding[0], of_row[None], no_padding[1], blank_id=BLANK
        ).tolist()
    np.testing.assert_allclose(history['loss'], [np.mean(losses)], rtol=1e-6)


def frames_of_labels(logits, labels):
    return (logits.argmax(axis=-1) != BLANK).sum(axis=1) - (labels >= 0).sum(axis=1)


def test_functions_get_logits_and_labels_after_whose_ends_is_minus_1():
    settings = {'epochs': 1, 'learning_rate': 1e-12, 'batch_size': 5}
    model, history = train(Frames(), settings=settings, metrics=[frames_of_labels])
    expected = np.mean(frames_of_labels(np.asarray(model(X)), padded(LABELS)))
    np.testing.assert_allclose(history['frames_of_labels'], [expected], rtol=1e-6)
    found = ModelEvaluator().evaluate(model, X, LABELS, metrics=[frames_of_labels])
    np.testing.assert_allclose(found['frames_of_labels'], expected, rtol=1e-6)


class WithKind(nnx.Module):
    """Returns frames, and a class of the row."""

    def __init__(self):
        self.frames, self.out = Frames(), nnx.Linear(FEATURES, 3, rngs=nnx.Rngs(0))

    def __call__(self, x, mask):
        return {'text': self.frames(x * mask[..., None]), 'kind': self.out(x.mean(axis=1))}


def test_a_head_of_sequences_beside_another():
    y = {'text': LABELS, 'kind': np.arange(ROWS) % 3}
    losses = {'text': CTC(blank_id=BLANK), 'kind': 'cross_entropy'}
    metrics = {'text': ['exact_match']}
    x = sequences_of()
    model, history = train(WithKind(), x, y, {'epochs': 1}, loss_fn=losses, metrics=metrics)
    np.testing.assert_allclose(
        history['text_loss'], [by_torch(Frames()(X), LENGTHS)], rtol=1e-6
    )  # fmt: skip
    assert history['text_exact_match'][0] == 0
    assert_sequences(predict(model, x)['text'], decoded(model.frames(X), LENGTHS))
    found = ModelEvaluator().evaluate(model, x, y)
    assert list(found['text'].metrics) == ['exact_match']


def test_batches_of_a_source():
    def source():
        yield X, padded(LABELS)

    _, history = train(Frames(), source, None)
    _, expected = train(Frames())
    np.testing.assert_allclose(history['loss'], expected['loss'], rtol=1e-6)


LONG = [[0, 1, 0, 1, 1, 4, 3, 0], *LABELS[1:]]


@pytest.mark.parametrize(
    ('y', 'more', 'error', 'match'),
    [
        (LONG, {}, DataError, r'got 8 labels in row 0, which need 9 frames .*, but .* returns 8'),
        ([[2], *LABELS[1:]], {}, DataError, 'got the label 2, which is the blank'),
        ([[5], *LABELS[1:]], {}, DataError, r'got labels \[5\], expected whole numbers from 0'),
        (padded([[-100, 1], *LABELS[1:]]), {}, DataError, 'got a label after -100 in row 0'),
        ([[0.5], *LABELS[1:]], {}, DataError, 'y_train, row 0: got float64'),
        (np.ones(ROWS, int), {}, DataError, r'got shape \(12,\) for a CTC loss'),
        (LABELS, {'loss_fn': CTC(5)}, ConfigError, r'got CTC\(blank_id=5\) for 5 outputs'),
        ([[1]] * ROWS, {'loss_fn': CTC}, ConfigError, r'got the class CTC, expected an object'),
        (LABELS, {'metrics': ['f1']}, ConfigError, "unknown metrics 'f1'|got 'f1'"),
        (LABELS, {'class_weights': {1: 2}}, DataError, 'class_weights'),
        (LABELS, {'augmentation': [MixUp()]}, ConfigError, 'augmentation'),
    ],
    ids=[
        'too long', 'blank', 'class', 'order', 'floats', 'one', 'blank_id', 'type', 'metric',
        'weights', 'mixup',
    ],
)  # fmt: skip
def test_other_labels_are_refused_before_a_compile(y, more, error, match, count_compiles):
    def refused():
        with pytest.raises(error, match=match):
            train(Frames(), X, y, **more)

    assert count_compiles(refused) == 0


def test_rows_of_fewer_frames_than_labels_are_refused():
    lengths = np.where(np.arange(ROWS) == 1, 3, LENGTHS)
    with pytest.raises(DataError, match=r'got 3 labels in row 1, which need 4 frames .* returns 3'):
        train(Masked(), sequences_of(lengths))
    val = {'X_val': X[:1], 'y_val': LONG[:1]}
    with pytest.raises(DataError, match='y_val: got 8 labels in row 0'):
        train(Frames(), **val)


def test_probabilities_and_reports_are_refused():
    model, _ = train(Frames(), settings={'epochs': 1})
    with pytest.raises(DataError, match='it was trained for sequences'):
        predict_proba(model, X)
    found = ModelEvaluator().evaluate(model, X, LABELS)
    with pytest.raises(ConfigError, match='reports have no part on sequences'):
        ModelEvaluator().generate_report(found)


def test_the_best_path_is_that_of_itertools():
    path = np.random.default_rng(1).integers(0, 4, (50, 7))
    found = best_path(path, blank_id=BLANK)
    np.testing.assert_array_equal(best_path(jnp.asarray(path), BLANK), found)
    expected = [[k for k, _ in itertools.groupby(row) if k != BLANK] for row in path]
    assert_sequences([row[row >= 0] for row in found], expected)
    others = np.concatenate([found, np.full((50, 2), -1)], axis=1)
    others[3, 0] = 9
    assert equal_sequences(found, others).tolist() == [row != 3 for row in range(50)]


@pytest.mark.parametrize('blank_id', [-1, 0.5, True])
def test_a_blank_is_the_position_of_an_output(blank_id):
    with pytest.raises(ConfigError, match=r'blank_id: got .*, expected the position of an output'):
        CTC(blank_id)
