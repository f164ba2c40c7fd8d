"""What errors and warnings say: the cause and the way that works, in the user's own terms."""

import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu
from flax import nnx

from thinkml.core.objectives.probe_sizes import with_rows
from thinkml.errors import ConfigError, DataError, ModelTypeError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.models import predict
from thinkml.training import (
    Checkpoint,
    EarlyStopping,
    ModelTrainer,
    ReduceLROnPlateau,
    TrainingConfig,
)

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def linear(outputs=2, inputs=4):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))


def train(model=None, x=X, y=Y, *, asked=None, **settings):
    config = TrainingConfig(**({'epochs': 2, 'batch_size': 16} | settings))
    trainer = ModelTrainer(config)
    return trainer.train(model or linear(), x, y, progress=False, **(asked or {}))


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'others', 'expected'),
    [
        ('(13,) and float32[13,2]', (), '(rows,) and float32[rows,2]'),
        ('shapes=[(13, 4), (2, 13)]', (), 'shapes=[(rows, 4), (2, rows)]'),
        ('(13, 13), (13,)', (13,), '(rows, 13), (13,)'),
        ((13,), (13,), '(rows,)'),
        ((13, 13), (13,), '(rows, 13)'),
        ('(113, 130), 13 of 13', (), '(113, 130), 13 of 13'),
        ('array of shape (13, 2) (size 26)', (), 'array of shape (rows, 2)'),
    ],
)
def test_shapes_say_rows(text, others, expected):
    assert with_rows(text, others=others) == expected


class Changed(nnx.Module):
    """Returns what a function makes of a layer's outputs."""

    def __init__(self, change, outputs=2, inputs=4):
        self.layer = linear(outputs, inputs)
        self.change = change

    def __call__(self, x):
        return self.change(self.layer(x))


@pytest.mark.parametrize(
    ('model', 'asked', 'says'),
    [
        (None, {'loss_fn': lambda p, t: p @ jnp.ones((5, 5))}, r'logits \(rows, 2\) and labels'),
        (None, {'loss_fn': lambda p, t: p - t}, r'shapes=\[\(rows, 2\), \(rows,\)\]'),
        (None, {'loss_fn': lambda p, t: p}, r'returned shape \(rows, 2\) for logits \(rows, 2\)'),
        (None, {'metrics': [lambda p, t: p[:, None]]}, r'shape \(rows, 1, 2\) for logits'),
        (None, {'metrics': [lambda p, t: p - t]}, r'logits \(rows, 2\) and labels \(rows,\) int32'),
        (None, {'augmentation': lambda k, x, y: (x[:3], y)}, r'expected float32\(rows, 4\)'),
        (None, {'augmentation': lambda k, x, y: (x @ x, y)}, r'batch x of float32\(rows, 4\)'),
        (lambda x: x[:, None], {}, r'outputs \(rows, 1, 2\), expected outputs \(rows,\) or'),
        (lambda x: x.T, {}, r'returns shape \(2, rows\)'),
        (lambda x: x + jnp.ones(5), {}, r'got .*\(rows, 2\)'),
    ],
)  # fmt: skip
def test_errors_name_no_number_of_rows_that_nobody_passed(model, asked, says):
    with pytest.raises((ConfigError, DataError, ModelTypeError), match=says) as error:
        train(None if model is None else Changed(model), asked=asked)
    assert not re.search(r'\b13\b|\b3\b(?=, 2\))', str(error.value))


def test_thirteen_columns_stay_thirteen():
    with pytest.raises(DataError, match=r'rows of \(13,\) float32(.|\n)*got \(13,\) and \(7,\)'):
        train(linear(2, inputs=7), np.ones((48, 13), np.float32))


# --- several targets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change', [lambda x: {'a': x}, lambda x: (x, x), lambda x: [x]], ids=['dict', 'tuple', 'list']
)
def test_several_outputs_need_several_targets(change):
    for call in (train, lambda model: ModelEvaluator().evaluate(model, X, Y)):
        with pytest.raises(DataError, match=r'got one array of shape .* Pass a (dict|tuple)'):
            call(Changed(change))


def test_several_targets_are_refused_with_the_way_that_works():
    both, columns = {'a': Y, 'b': Y}, r"np\.column_stack\(\[y\['a'\], y\['b'\]\]\)"
    in_rows = np.array([{'a': 0, 'b': 1}] * 48)

    def batches():
        return iter([(X, both)])

    for call, argument in (
        (lambda: train(y=both), 'y_train'),
        (lambda: train(y=in_rows), 'y_train'),
        (lambda: train(asked={'X_val': X, 'y_val': both}), 'y_val'),
        (lambda: train(x=batches, y=None), 'X_train, batch 1'),
        (lambda: ModelEvaluator().evaluate(linear(), X, both), 'y_test'),
    ):
        with pytest.raises(DataError, match=f"^{argument}: got a dict of 'a', 'b', .*{columns}"):
            call()
    with pytest.raises(DataError, match=r'y_train: got a tuple of 2 arrays.*y\[0\], y\[1\]'):
        train(y=(Y, Y))


def test_a_list_of_targets_is_put_side_by_side():
    with pytest.raises(DataError, match=r'y_train with 2 rows.*np\.column_stack\(y_train\)'):
        train(y=[Y, Y])
    with pytest.raises(DataError, match=r'split and filtered in the same way.$'):
        train(y=Y[:2])


def test_columns_side_by_side_train_two_heads():
    """A number and a class in one array, as the errors say."""
    number, kind = X[:, 1], Y
    targets = np.column_stack([number, np.eye(2)[kind]])

    def loss(outputs, targets):
        squared = (outputs[:, 0] - targets[:, 0]) ** 2
        return squared - (targets[:, 1:] * jax.nn.log_softmax(outputs[:, 1:])).sum(1)

    class Heads(nnx.Module):
        def __init__(self):
            self.number, self.kind = linear(1), linear(2)

        def __call__(self, x):
            return jnp.concatenate([self.number(x), self.kind(x)], axis=1)

    model = Heads()
    train(model, y=targets, asked={'loss_fn': loss}, epochs=200, learning_rate=0.05)
    outputs = np.asarray(predict(model, X))
    np.testing.assert_allclose(outputs[:, 0], number, atol=0.1)
    assert (outputs[:, 1:].argmax(1) == kind).mean() > 0.95


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('first', 'later', 'outputs', 'says'),
    [
        (Y, np.arange(48), 1, r"batch 2: got labels.*read from batch 1 alone.*loss_fn='mse'"),
        (Y * 1.0, Y + 0.5, 1, r"batch 2: got labels.*read from batch 1 alone.*loss_fn='mse'"),
        (Y, Y + 1, 2, r'batch 2: got labels.*read from batch 1 alone: let it have each'),
        (Y * 0 + 7, Y, 2, r'^X_train, batch 1: got only one label.*read from batch 1 alone'),
    ],
)
def test_a_first_batch_that_misleads_is_named_with_the_loss(first, later, outputs, says):
    class Source:
        def __iter__(self):
            return iter([(X, first), (X, later)])

    with pytest.raises(DataError, match=says):
        train(linear(outputs), Source(), None)


def test_a_loss_that_decides_is_not_advised_again():
    def batches():
        return iter([(X, Y), (X, Y + 1)])

    with pytest.raises(DataError, match=r'batch 2: got labels.*batch 1 alone') as error:
        train(linear(), batches, None, asked={'loss_fn': 'cross_entropy'})
    assert 'mse' not in str(error.value)


# --- metrics and what watches them ------------------------------------------------------------


@flax.struct.dataclass
class Total(clu.Metric):
    total: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.zeros(()))

    def merge(self, other):
        return type(self)(self.total + other.total)

    def compute(self):
        return self.total


@flax.struct.dataclass
class WithoutRest(Total):
    @classmethod
    def from_model_output(cls, logits, labels):
        return cls(logits.sum())


@flax.struct.dataclass
class AsksForMore(Total):
    @classmethod
    def from_model_output(cls, logits, scale, **_):
        return cls(logits.sum() * scale)


@flax.struct.dataclass
class Fails(Total):
    @classmethod
    def from_model_output(cls, logits, labels, **_):
        return cls((logits - labels).sum())


@flax.struct.dataclass
class OfOutputs(Total):
    @classmethod
    def from_model_output(cls, logits, **_):
        return cls(logits.sum())


@flax.struct.dataclass
class OfGradients(Total):
    @classmethod
    def from_model_output(cls, grads, **_):
        return cls(sum(leaf.sum() for leaf in jax.tree.leaves(grads['kernel'])))


@pytest.mark.parametrize(
    ('metric', 'says'),
    [
        (WithoutRest, r"WithoutRest\.from_mod.*does not take the.*'losses'.*end with \*\*_"),
        (AsksForMore, r"requires another argument: 'scale'"),
        (clu.Average, r"requires another argument: 'values'"),
        (clu.Average.from_output('loss'), r"logits \(rows, 2\).*KeyError: 'loss'.*losses"),
        (Fails, r"'fails' failed for logits \(rows, 2\) and labels \(rows,\)"),
    ],
)  # fmt: skip
def test_clu_metrics_that_a_step_can_not_call_are_refused_before_it_is_compiled(
    metric, says, count_compiles
):
    def call():
        with pytest.raises(ConfigError, match=f'(?s)^metrics: .*{says}'):
            train(asked={'metrics': [metric]})

    call()
    assert count_compiles(call) == 0


def test_clu_metrics_of_outputs_and_of_gradients_are_taken():
    history = train(asked={'metrics': [OfOutputs, OfGradients]})
    assert {'of_outputs', 'of_gradients'} <= set(history)


@pytest.mark.parametrize('validation', [{}, {'X_val': X, 'y_val': Y}])
@pytest.mark.parametrize('name', ['grad_norm', 'update_ratio'])
def test_what_only_training_has_is_not_said_to_miss_validation_data(name, validation, tmp_path):
    for settings in (
        {'early_stopping': EarlyStopping(monitor=f'val_{name}')},
        {'callbacks': [ReduceLROnPlateau(monitor=f'val_{name}')]},
        {'callbacks': [Checkpoint(monitor=f'val_{name}')], 'checkpoint_dir': tmp_path},
    ):
        match = f'a metric of training steps.*Monitor {name!r}'
        with pytest.raises(ConfigError, match=match) as error:
            train(asked={'metrics': [name], **validation}, **settings)
        assert 'no validation data' not in str(error.value)


@pytest.mark.parametrize(
    ('settings', 'who'),
    [
        ({'early_stopping': EarlyStopping(monitor='val_roc_auc', patience=1)}, 'EarlyStopping'),
        ({'callbacks': [ReduceLROnPlateau(monitor='val_roc_auc')]}, 'ReduceLROnPlateau'),
        ({'callbacks': [Checkpoint(monitor='val_roc_auc')]}, 'Checkpoint'),
    ],
)
def test_a_monitor_that_is_nan_is_warned_of_with_the_missing_label(settings, who, tmp_path):
    names = np.where(Y == 1, 'well', 'ill')
    well = names == 'well'
    asked = {'metrics': ['roc_auc'], 'X_val': X[well], 'y_val': names[well]}
    settings = settings | {'checkpoint_dir': tmp_path}
    says = rf"^monitor: val_roc_auc, which {who} .*labelled 'ill'"
    with pytest.warns(ThinkMLWarning, match=says):
        train(y=names, asked=asked, **settings)


def test_a_custom_monitor_that_is_nan_is_warned_of():
    def ratio(logits, labels):
        return jnp.full(len(labels), jnp.nan)

    stopping = EarlyStopping(monitor='ratio', mode='max', patience=1)
    with pytest.warns(ThinkMLWarning, match=r'ratio.* was NaN in 1 of 1 epochs.*not defined'):
        train(asked={'metrics': [ratio]}, early_stopping=stopping)


def test_patience_of_0_is_refused_with_what_1_does():
    for kind in (EarlyStopping, ReduceLROnPlateau):
        with pytest.raises(ConfigError, match=r'patience: got 0, .*at least 1, which acts on'):
            kind(patience=0)


@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_nothing_is_said_of_a_step_before_the_first(precision):
    with pytest.warns(ThinkMLWarning, match=r'step 1 .*it began with. No step was taken') as told:
        train(linear(1), X * 1e30, X[:, 0], precision=precision)
    assert not any('step before' in str(warning.message) for warning in told)
