"""A resumed run must have the functions and monitors that it was started with."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu.metrics import Average
from flax import nnx, struct

from tests.models_for_tests import mlp
from thinkml.errors import ConfigError
from thinkml.training import (
    Checkpoint,
    EarlyStopping,
    ModelTrainer,
    ReduceLROnPlateau,
    TrainingConfig,
)
from thinkml.training.function_digests import function_digests
from thinkml.training.run_checkpoints import Checkpoints
from thinkml.training.training_data import TrainRequest
from thinkml.training.training_setup import make_setup

X = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)


def make_loss(scale=1.0, weights=(1.0, 2.0, 1.0)):
    weights = jnp.array(weights)

    def loss(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return scale * weights[labels] * losses

    return loss


def make_loss_of_gradient(factor):
    """Returns losses of the same values with different gradients."""

    @jax.custom_vjp
    def scaled(x):
        return x

    scaled.defvjp(lambda x: (x, None), lambda _, g: (factor * g,))

    def loss(logits, labels):
        return scaled(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss


def make_metric(power=1):
    def metric(logits, labels):
        return jnp.abs(logits[:, 0]) ** power

    return metric


def make_host_metric(threshold=0.5):
    def host(logits, labels):
        return float((np.asarray(logits)[:, 0] > threshold).mean())

    return host


def make_clu_metric(factor=1.0):
    @struct.dataclass
    class Scaled(Average):
        @classmethod
        def from_model_output(cls, *, logits, mask, **_):
            return super().from_model_output(factor * logits[:, 0], mask=mask)

    return Scaled


class Noise:
    """An augmentation whose repr does not show its settings."""

    def __init__(self, size=0.1):
        self.size = size

    def __call__(self, key, x, y):
        return x + self.size * jax.random.normal(key, x.shape), y


def make_rate(peak=0.01):
    return lambda step: peak / (1 + step)


def make_optimizer(momentum=0.9):
    return lambda rate: optax.sgd(rate, momentum=momentum)


def asked(*, loss=None, metric=None, host=None, clu=None, augmentation=None):
    return {
        'loss_fn': loss or make_loss(),
        'metrics': [metric or make_metric(), host or make_host_metric(), clu or make_clu_metric()],
        'augmentation': [augmentation or Noise(), 'noise'],
    }


def train(directory, *, resume=False, arguments=None, checkpoint=None, **settings):
    config = TrainingConfig(**{
        'batch_size': 20, 'epochs': 2, 'validation_split': 0.2,
        'checkpoint_dir': directory, 'callbacks': ['checkpoint'],
    } | settings)  # fmt: skip
    return ModelTrainer(config).train(
        mlp(4, 3), X, Y, resume=resume, progress=False, **(arguments or {})
    )


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    """Trains a run with custom functions in every argument."""
    directory = tmp_path_factory.mktemp('begun')
    train(directory, arguments=asked(), learning_rate=make_rate(), optimizer=make_optimizer())
    return directory


OTHER = {
    'loss_fn': ({'loss': make_loss(2.0)}, {}),
    'metrics.metric': ({'metric': make_metric(2)}, {}),
    'metrics.host': ({'host': make_host_metric(0.25)}, {}),
    'metrics.scaled': ({'clu': make_clu_metric(2.0)}, {}),
    'augmentation': ({'augmentation': Noise(0.2)}, {}),
    'learning_rate': ({}, {'learning_rate': make_rate(0.02)}),
    'optimizer': ({}, {'optimizer': make_optimizer(0.8)}),
}


@pytest.mark.parametrize('name', OTHER)
def test_another_function_of_the_same_name_is_told(begun, name, count_compiles):
    other, settings = OTHER[name]
    settings = {'learning_rate': make_rate(), 'optimizer': make_optimizer()} | settings

    def resume():
        with pytest.raises(ConfigError, match=r'^resume: the run in .* is another one') as error:
            train(begun, arguments=asked(**other), resume=True, epochs=3, **settings)
        found = [line for line in str(error.value).splitlines() if line.startswith('  - ')]
        assert len(found) == 1 and found[0].startswith(f'  - {name}: ')

    resume()
    assert count_compiles(resume) == 0


def test_the_same_functions_made_again_are_recognised(begun):
    functions = {'learning_rate': make_rate(), 'optimizer': make_optimizer()}
    history = train(begun, arguments=asked(), resume=True, **functions)
    assert history.epochs == 2 and history.resumed_at == []


def digests(**settings):
    arguments = {name: settings.pop(name) for name in asked() if name in settings}
    request, config = TrainRequest(X, Y, **arguments), TrainingConfig(**settings)
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    return function_digests(model, make_setup(model, request, config), request, config)


def cosine(end):
    return optax.cosine_decay_schedule(0.1, 100, alpha=end)


PAIRS = {
    'array in a closure': [{'loss_fn': make_loss(weights=w)} for w in ((1, 2, 1), (1, 2, 3))],
    'gradient': [{'loss_fn': make_loss_of_gradient(factor)} for factor in (1.0, 2.0)],
    'compiled': [{'loss_fn': jax.jit(make_loss(weights=w))} for w in ((1, 2, 1), (1, 2, 3))],
    'partial': [
        {'augmentation': functools.partial(lambda size, key, x, y: (x * size, y), size)}
        for size in (1.0, 2.0)
    ],
    'optax object': [{'optimizer': optax.sgd(rate)} for rate in (0.1, 0.2)],
    'chain': [{'optimizer': optax.chain(optax.clip(c), optax.adam(0.1))} for c in (1.0, 2.0)],
    'injected': [{'optimizer': optax.inject_hyperparams(optax.sgd)(cosine(e))} for e in (0, 0.1)],
    'schedule': [{'learning_rate': cosine(end)} for end in (0.0, 0.1)],
    'by parameter': [
        {'optimizer': optax.masked(optax.sgd(0.1), lambda p, n=n: {k: k == n for k in p})}
        for n in ('kernel', 'bias')
    ],
}


@pytest.mark.parametrize('name', PAIRS)
def test_what_is_computed_tells_functions_apart(name):
    first, second = PAIRS[name]
    assert digests(**first) == digests(**first) != digests(**second)


THRESHOLD = 0.5


def test_a_host_metric_is_known_by_its_code_and_values(monkeypatch):
    def of_global(logits, labels):
        return float((np.asarray(logits)[:, 0] > THRESHOLD).mean())

    def digest(metric):
        return digests(metrics=[metric])[f'metrics.{metric.__name__}']

    assert digest(make_host_metric()) == digest(make_host_metric())
    assert digest(make_host_metric()) != digest(make_host_metric(0.75))
    before = digest(of_global)
    monkeypatch.setitem(globals(), 'THRESHOLD', 0.75)
    assert digest(of_global) != before


BETAS = {'beta': 0.5}


def times_beta(value):
    return float(value) * BETAS['beta']


def make_recursive(factor):
    def host(logits, labels, depth=2):
        return host(logits, labels, depth - 1) if depth else float(logits[0, 0]) * factor

    return host


class Mean:
    factor = 1.0

    def __call__(self, logits, labels):
        return float(logits[0, 0]) * self.factor


class Scaled(Mean):
    def __init__(self, factor, weights=(1.0,)):
        super().__init__()
        self.weights = np.array(weights)
        self.scale = factor

    def __call__(self, logits, labels):
        return super().__call__(logits, labels) * self.scale * float(self.weights[0])


def make_clu_host_metric(factor):
    @struct.dataclass
    class OnHost(Average):
        @classmethod
        def from_model_output(cls, *, logits, **_):
            return super().from_model_output(float(logits[0, 0]) * logits[:, 0])

        def compute(self):
            return float(super().compute()) * factor

    return OnHost


def make_of_set(*values):
    return lambda logits, labels: float(int(logits[0, 0]) in set(values))


HOST_PAIRS = {
    'recursive': (make_recursive(1.0), make_recursive(2.0)),
    'super': (Scaled(1.0), Scaled(2.0)),
    'array attribute': (Scaled(1.0), Scaled(1.0, weights=(2.0,))),
    'method': (Scaled(1.0).__call__, Scaled(2.0).__call__),
    'clu': (make_clu_host_metric(1.0), make_clu_host_metric(2.0)),
    'values of a set': (make_of_set(1, 2), make_of_set(1, 3)),
}


@pytest.mark.parametrize('name', HOST_PAIRS)
def test_host_metrics_of_any_kind_are_told_apart(name):
    first, second = HOST_PAIRS[name]
    assert digests(metrics=[first]) == digests(metrics=[first]) != digests(metrics=[second])


def test_values_and_functions_of_its_module_are_part_of_a_host_metric(monkeypatch):
    def host(logits, labels):
        return times_beta(sum(float(value) for value in logits[:, 0] if value > THRESHOLD))

    first = digests(metrics=[host])
    monkeypatch.setitem(BETAS, 'beta', 2.0)
    second = digests(metrics=[host])
    monkeypatch.setitem(globals(), 'THRESHOLD', 0.75)
    third = digests(metrics=[host])
    monkeypatch.setattr(Mean, 'factor', 1.0)
    before = digests(metrics=[Mean()])
    monkeypatch.setattr(Mean, 'factor', 2.0)
    assert first != second != third and before != digests(metrics=[Mean()])


SEEN, COUNT = [], 0


def counting_in_globals(logits, labels):
    global COUNT
    COUNT += 1
    SEEN.append(COUNT)
    return float(logits[0, 0])


def make_counting():
    count, seen = 0, {}

    def host(logits, labels):
        nonlocal count
        count += 1
        seen[count] = float(logits[0, 0])
        return seen[count]

    return host


class Counting:
    def __init__(self):
        self.count, self.seen = 0, []

    def __call__(self, logits, labels):
        self.count += 1
        self.seen.append(self.count)
        return float(logits[0, 0])


@pytest.mark.parametrize('metric', [counting_in_globals, make_counting(), Counting()])
def test_what_a_host_metric_counts_does_not_make_it_another(metric):
    before = digests(metrics=[metric])
    metric(np.ones((2, 3)), np.ones(2))
    assert digests(metrics=[metric]) == before


def test_what_thinkml_names_has_no_digest():
    ours = {'loss_fn': 'focal', 'metrics': ['f1'], 'augmentation': ['noise'], 'optimizer': 'sgd'}
    assert digests(**ours).keys() == digests().keys() == {'versions'}


def print_digests():
    """Prints digests; a test calls it in other processes."""
    print(json.dumps(digests(**asked(), learning_rate=make_rate(), optimizer=make_optimizer())))


@pytest.mark.slow
def test_digests_are_the_same_in_every_process():
    code = 'from tests.training.test_same_run import print_digests; print_digests()'
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
    found = []
    for seed in ('1', '2'):
        done = subprocess.run(
            [sys.executable, '-c', code], env=environment | {'PYTHONHASHSEED': seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout))
    here = digests(**asked(), learning_rate=make_rate(), optimizer=make_optimizer())
    assert found == [here, here] and len(here) == 8


# --- monitors -----------------------------------------------------------------------------------

WATCHERS = {
    'EarlyStopping': lambda **watch: {'callbacks': ['checkpoint', EarlyStopping(**watch)]},
    'ReduceLROnPlateau': lambda **watch: {'callbacks': ['checkpoint', ReduceLROnPlateau(**watch)]},
    'Checkpoint': lambda **watch: {'callbacks': [Checkpoint(**watch)]},
}


@pytest.mark.parametrize('name', WATCHERS)
def test_another_monitor_is_told(tmp_path, name):
    make = WATCHERS[name]
    train(tmp_path, **make())
    for watch, says in [
        ({'monitor': 'val_accuracy'}, r'val_accuracy \(max\) now'),
        ({'mode': 'max'}, r'val_loss \(max\) now'),
    ]:
        says = rf'callbacks: {name} watched val_loss \(min\) in the checkpoint, {says}'
        with pytest.raises(ConfigError, match=says):
            train(tmp_path, resume=True, epochs=4, **make(**watch))
    history = train(tmp_path, resume=True, epochs=4, **make(monitor='val_loss'))
    assert history.epochs == 4


def test_checkpoints_from_before_functions_were_compared(tmp_path, monkeypatch):
    new = Checkpoints._metadata_of

    def old(self, run):
        return {k: v for k, v in new(self, run).items() if k not in ('functions', 'watched')}

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, '_metadata_of', old)
        train(tmp_path, arguments={'metrics': [make_metric()]})
    history = train(tmp_path, arguments={'metrics': [make_metric()]}, resume=True, epochs=3)
    assert history.epochs == 3
