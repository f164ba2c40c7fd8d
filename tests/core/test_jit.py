"""Tests of the program cache: it keeps the most recently used and the held programs only."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.core import predict_outputs
from thinkml.core.model.adapters import from_functions
from thinkml.core.xla import jit
from thinkml.core.xla.jit import Jit, forget_programs, holding_programs
from thinkml.training import ModelTrainer, TrainingConfig

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = np.array([0, 1] * 4)


@pytest.fixture
def few(monkeypatch):
    """Limits the cache to four programs."""
    forget_programs()
    monkeypatch.setattr(jit, 'MOST_KEPT', 4)
    monkeypatch.setattr(jit, 'MOST_COMPILED', 6)
    monkeypatch.setattr(jit._programs, '_num_compiled', 0)
    cleared = []
    monkeypatch.setattr(jax, 'clear_caches', lambda: cleared.append(1))
    return cleared


def traced(function, **settings):
    """Returns the compiled function and the list of shapes that it was traced with."""
    shapes = []

    def noted(*args, **kwargs):
        shapes.append(args[0].shape)
        return function(*args, **kwargs)

    return Jit(noted, **settings), shapes


def test_a_program_is_found_again_for_equal_shapes_and_settings_only():
    double, shapes = traced(lambda x: jnp.dot(x, 2.0))
    for x in (np.ones(3, np.float32), jnp.ones(3), np.ones(3), jnp.ones(4), jnp.ones(3, int)):
        np.testing.assert_array_equal(double(x), 2.0 * np.ones(len(x)))
    assert shapes == [(3,), (4,), (3,)]
    with jax.default_matmul_precision('float32'):
        double(jnp.ones(3))
    assert len(shapes) == 4
    with jax.disable_jit():
        double(jnp.ones(3))
    assert len(shapes) == 5
    assert jax.jit(double)(jnp.ones(3)).tolist() == [2, 2, 2]
    assert jax.eval_shape(double, jnp.ones(7)).shape == (7,)


def test_static_and_donated_arguments_are_at_any_place():
    function = Jit(
        lambda x, factor, y, shift: x * factor + y + shift,
        static_argnums=(1,), static_argnames=('shift',), donate_argnums=(2,),
    )  # fmt: skip
    y = jnp.ones(3)
    assert function(np.ones(3, np.float32), 2, y, shift=4).tolist() == [7, 7, 7]
    assert y.is_deleted()
    assert function(np.ones(3, np.float32), 3, jnp.ones(3), 4).tolist() == [8, 8, 8]
    with pytest.raises(TypeError, match='unhashable'):
        function(np.ones(3, np.float32), [2], jnp.ones(3), 4)


def test_committed_arrays_need_another_program():
    double, shapes = traced(lambda x: 2 * x)
    double(jnp.ones(3))
    double(jax.device_put(jnp.ones(3), jax.devices()[0]))
    double(jax.device_put(jnp.ones(3), jax.devices()[0]))
    assert len(shapes) == 2


def test_the_most_recently_used_programs_are_kept(few):
    double, shapes = traced(lambda x: 2 * x)
    for size in (1, 2, 3, 4, 1, 5, 1, 3, 2):  # 5 evicts 2
        double(np.ones(size))
    assert shapes == [(1,), (2,), (3,), (4,), (5,), (2,)]
    assert len(jit._programs._recent) == len(jit._programs._alive) == 4


def test_the_caches_of_jax_are_cleared_too(few):
    double, _ = traced(lambda x: 2 * x)
    double(np.ones(1))
    for size in range(1, 7):  # like a flax.nnx model that initializes its weights
        jax.jit(lambda x: 3 * x)(np.ones(size))
    assert not few
    double(np.ones(2))
    double(np.ones(1))
    assert len(few) == 1


def test_held_programs_are_kept_however_many_others_are_used(few):
    double, shapes = traced(lambda x: 2 * x)
    with holding_programs():
        double(np.ones(1))
        with holding_programs(False):
            for size in range(2, 12):
                double(np.ones(size))
        double(np.ones(1))
        assert len(jit._programs._alive) <= 5
    assert shapes.count((1,)) == 1
    for size in range(2, 12):
        double(np.ones(size))
    double(np.ones(1))
    assert shapes.count((1,)) == 2


def test_trainings_of_other_models_and_losses_leave_no_more(few):
    def train(width, **options):
        trainer = ModelTrainer(TrainingConfig(epochs=1))
        trainer.train(network(width), X, Y, progress=False, **options)
        predict_outputs(network(width), X)

    for width in range(1, 6):
        train(width)
    train(5, loss_fn=lambda logits, labels: logits[:, 0] ** 2)
    gc.collect()
    assert len(jit._programs._alive) == 4
    assert few


def network(width, traces=None):
    def apply(params, x):
        if traces is not None:
            traces.append(x.shape)
        return x @ params['first'] @ params['last']

    params = {'first': np.ones((3, width), np.float32), 'last': np.ones((width, 2), np.float32)}
    return from_functions(lambda key, x: params, apply, params)


def test_a_training_keeps_its_programs_while_its_callbacks_use_others(few):
    traces, so_far = [], []
    model = network(1, traces)

    def others(run):
        for width in range(2, 8):
            predict_outputs(network(width), X)
        so_far.append(len(traces))

    config = TrainingConfig(epochs=3, callbacks=[others])
    ModelTrainer(config).train(model, X, Y, X_val=X, y_val=Y, progress=False)
    assert so_far[0] == so_far[1] == so_far[2] == len(traces)


def test_trainings_that_share_a_program_compile_nothing(count_compiles):
    apply = network(2).apply

    def train(seed):
        params = {'first': np.full((3, 2), seed, np.float32), 'last': np.ones((2, 2), np.float32)}
        model = from_functions(lambda key, x: params, apply, params)
        config = TrainingConfig(epochs=2, learning_rate=0.1 / (seed + 1), seed=seed)
        ModelTrainer(config).train(model, X, Y, X_val=X, y_val=Y, progress=False)
        return predict_outputs(model, X)

    train(0)
    assert count_compiles(lambda: [train(seed) for seed in range(1, 6)]) == 0


MANY = """
import gc
import numpy as np
from thinkml.core import predict_outputs
from thinkml.evaluation import ModelEvaluator
from thinkml.models import from_functions
from thinkml.training import ModelTrainer, TrainingConfig

X, Y = np.ones((8, 3), np.float32), np.array([0, 1] * 4)

def measured():
    gc.collect()
    with open('/proc/self/maps') as maps, open('/proc/self/statm') as pages:
        return sum(1 for _ in maps), int(pages.read().split()[1]) // 256

def network(width):
    params = {'first': np.ones((3, width), np.float32), 'last': np.ones((width, 2), np.float32)}
    def apply(params, x):
        return x @ params['first'] @ params['last']
    return from_functions(lambda key, x: params, apply, params)

def one(number):
    model = network(number + 1)
    if number % 10 == 0:
        trainer = ModelTrainer(TrainingConfig(epochs=1, optimizer='sgd'))
        trainer.train(model, X, Y, progress=False)
        ModelEvaluator().evaluate(model, X, Y)
    predict_outputs(model, X)

for number in range(600):
    one(number)
    if number in (299, 449, 599):
        print(*measured(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_many_programs_take_no_more_maps_and_memory_than_some_hundred():
    done = subprocess.run(
        [sys.executable, '-c', MANY], check=True, text=True, stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    maps, megabytes = zip(
        *(map(int, line.split()) for line in done.stdout.splitlines()), strict=True
    )
    assert max(maps) < maps[0] + 1_000, maps
    assert megabytes[-1] < megabytes[0] + 150, megabytes
