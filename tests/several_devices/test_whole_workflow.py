"""Tests of training on eight devices together with the other features of ThinkML."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx

from tests.several_devices.test_same_curve import (
    MODELS,
    SETTINGS,
    X,
    Y,
    assert_same,
    on_one,
    trained,
)
from thinkml.core.model import forward
from thinkml.core.train import dispatch
from thinkml.errors import ConfigError
from thinkml.evaluation import ModelEvaluator
from thinkml.models import ModelManager, predict_proba
from thinkml.training import (
    ActiveLearner,
    Checkpoint,
    DistributedTrainer,
    ModelTrainer,
    TrainingConfig,
)

CONFIG = TrainingConfig(**SETTINGS)


class Wide(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(64, 512, rngs=rngs)
        self.out = nnx.Linear(512, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.up(x.reshape(len(x), -1))))


@pytest.fixture(scope='module')
def sharded_model():
    model = Wide(nnx.Rngs(0))
    trainer = DistributedTrainer(TrainingConfig(epochs=1), strategy='fsdp')
    trainer.train(model, X, Y, progress=False)
    return model


# --- placement --------------------------------------------------------------------------------


def test_mirrored_leaves_a_model_as_one_device_would():
    model = Wide(nnx.Rngs(0))
    DistributedTrainer(TrainingConfig(epochs=1)).train(model, X, Y, progress=False)
    kernel = model.up.kernel[...]
    assert kernel.sharding.device_set == {jax.devices()[0]} and not kernel.committed


def test_fsdp_leaves_the_model_sharded(sharded_model):
    kernel = sharded_model.up.kernel[...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 64)}
    assert len(kernel.sharding.device_set) == 8


def test_fsdp_takes_an_eighth_of_the_memory():
    seen = {}

    def look(run):
        for leaf in jax.tree.leaves((run.state.params, run.state.opt_state)):
            seen[run.config.seed] = seen.get(run.config.seed, 0) + leaf.addressable_data(0).nbytes

    for seed, strategy in enumerate(('mirrored', 'fsdp')):
        config = TrainingConfig(epochs=1, seed=seed, callbacks=[look])
        DistributedTrainer(config, strategy=strategy).train(Wide(nnx.Rngs(0)), X, Y, progress=False)
    assert seen[1] < seen[0] / 7


# --- communication ----------------------------------------------------------------------------


def program_of(monkeypatch, make=Wide, **settings):
    """Returns the compiled chunk of a training as text."""
    run_steps = dispatch._run_steps

    class Compiled(Exception):
        pass

    def compiled(*arguments):
        raise Compiled(run_steps.lower(*arguments).compile().as_text())

    monkeypatch.setattr(dispatch, '_run_steps', compiled)
    strategy = settings.pop('strategy', 'mirrored')
    config = TrainingConfig(**{'epochs': 1, 'steps_per_dispatch': 20, **settings})
    trainer = DistributedTrainer(config, strategy=strategy)
    with pytest.raises(Compiled) as caught:
        trainer.train(make(nnx.Rngs(0)), X, Y, progress=False)
    return str(caught.value)


def exchanges(text, kind):
    return [line for line in text.splitlines() if f' {kind}(' in line or f' {kind}-start(' in line]


@pytest.mark.compiled
def test_a_mirrored_step_exchanges_the_gradients_once(monkeypatch):
    text = program_of(monkeypatch)
    gradient_exchanges = [line for line in exchanges(text, 'all-reduce') if '[64,512]' in line]
    gradient_exchanges += [line for line in exchanges(text, 'all-reduce') if '[512,64]' in line]
    assert len(gradient_exchanges) == 1
    # A single all-reduce contains all gradients and the loss.
    assert 'f32[512]' in gradient_exchanges[0] and 'f32[3]' in gradient_exchanges[0]
    assert not exchanges(text, 'all-gather') and not exchanges(text, 'all-to-all')
    assert not exchanges(text, 'collective-permute')


@pytest.mark.compiled
def test_sharded_rows_are_never_gathered(monkeypatch):
    text = program_of(monkeypatch, device_data_bytes=20_000)
    rows = f'[{len(X) + 1},8,8,1]'
    assert f'[{(len(X) + 5) // 8},8,8,1]' in text  # the shard of a device
    assert rows not in text
    assert not exchanges(text, 'all-gather')


@pytest.mark.compiled
def test_fsdp_gathers_parameters_and_keeps_shards(monkeypatch):
    text = program_of(monkeypatch, MODELS['mlp'], strategy='fsdp')
    assert len([line for line in exchanges(text, 'all-gather') if 'f32[64,64]' in line]) == 1
    loop_of_steps = re.findall(r'.* while\(.*op_name="jit\(_run_steps\)/while".*', text)
    [state_of_loop] = [line.partition(' while(')[0] for line in loop_of_steps]
    assert 'f32[8,64]' in state_of_loop and 'f32[64,64]' not in state_of_loop


@pytest.mark.compiled
def test_accumulated_parts_exchange_as_often(monkeypatch):
    text = program_of(monkeypatch, accumulate_steps=4, batch_size=8)
    gradient_exchanges = [line for line in exchanges(text, 'all-reduce') if '512,64]' in line]
    assert len(gradient_exchanges) == 1 and 'while/body/while/body' in gradient_exchanges[0]


# --- resuming ---------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (('fsdp', 8), ('fsdp', 8)),
        (('fsdp', 8), (None, 1)),
        ((None, 1), ('mirrored', 8)),
        pytest.param(('mirrored', 8), ('fsdp', 8), marks=pytest.mark.slow),
        pytest.param(('mirrored', 2), ('fsdp', 8), marks=pytest.mark.slow),
        pytest.param((None, 1), ('fsdp', 4), marks=pytest.mark.slow),
        pytest.param(('mirrored', 8), ('mirrored', 8), marks=pytest.mark.slow),
        pytest.param(('mirrored', 8), ('mirrored', 3), marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_on_other_devices(before, after, tmp_path):
    def train(strategy, devices, directory, stop_after=None, **options):
        def stop(run):
            if run.step == stop_after:
                raise RuntimeError('stopped')

        stopper = type('Stopper', (), {'on_chunk_end': lambda self, run: stop(run)})()
        config = TrainingConfig(
            **SETTINGS, callbacks=[Checkpoint(directory, every_steps=3), stopper]
        )
        if strategy is None:
            trainer = ModelTrainer(config)
        else:
            trainer = DistributedTrainer(config, strategy=strategy, num_gpus=devices)
        return trained('cnn', trainer, **options)

    with pytest.raises(RuntimeError, match='stopped'):
        train(*before, tmp_path, stop_after=9)
    resumed = train(*after, tmp_path, resume=True)
    assert_same(resumed, on_one('cnn'))
    if before == after:
        uninterrupted = train(*before, tmp_path / 'uninterrupted')
        assert resumed[0] == uninterrupted[0]
        for name, array in uninterrupted[2].items():
            np.testing.assert_array_equal(resumed[2][name], array)


# --- one trainer ------------------------------------------------------------------------------


def test_a_model_trainer_trains_on_the_devices_it_is_given():
    expected = trained('cnn', DistributedTrainer(CONFIG, num_gpus=2))
    for devices in (2, jax.devices()[:2]):
        trainer = ModelTrainer(CONFIG, devices=devices)
        assert (trainer.devices, trainer.strategy) == (jax.devices()[:2], 'mirrored')
        assert trained('cnn', trainer)[0] == expected[0]
    assert ModelTrainer(CONFIG, strategy='fsdp').devices == jax.devices()
    alone = ModelTrainer(CONFIG)
    assert (alone.devices, alone.strategy) == (jax.devices()[:1], None)


def test_one_device_that_is_not_the_default_trains_alone():
    expected = trained('cnn', ModelTrainer(CONFIG))
    seen = []

    def look(run):
        seen.append(run.state.step.devices())

    last = jax.devices()[-1]
    config = dataclasses.replace(CONFIG, callbacks=[look])
    assert_same(trained('cnn', ModelTrainer(config, devices=[last])), expected)
    assert set.union(*seen) == {last}
    seen.clear()
    with jax.default_device(last):
        trainer = ModelTrainer(config)
        assert trainer.devices == [last]
        trained('cnn', trainer)
    assert set.union(*seen) == {last}


def test_a_rate_is_found_on_several_devices_as_on_one():
    config = TrainingConfig(batch_size=16)
    several = ModelTrainer(config, devices=4).find_learning_rate(Wide(nnx.Rngs(0)), X, Y)
    one = ModelTrainer(config).find_learning_rate(Wide(nnx.Rngs(0)), X, Y)
    np.testing.assert_allclose(several.losses[:30], one.losses[:30], rtol=1e-4)


def test_several_devices_hold_larger_batches(monkeypatch):
    budgets = []

    def budget(layout):
        budgets.append(layout.num_devices)
        return 1_500_000

    monkeypatch.setattr('thinkml.training.tuning.device_budget', budget)
    rows = np.resize(X, (1024, *X.shape[1:])), np.resize(Y, 1024)
    config = TrainingConfig(optimizer='sgd', on_nan='ignore')
    one, four = (
        ModelTrainer(config, devices=count).find_batch_size(Wide(nnx.Rngs(0)), *rows)
        for count in (None, 4)
    )
    assert budgets == [1, 4] and four > one


@pytest.mark.parametrize('devices', [9, 0, True, 'two', [], ['cpu:0']])
def test_impossible_devices_are_refused(devices):
    with pytest.raises(ConfigError, match='devices: got'):
        ModelTrainer(devices=devices)


# --- options ----------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.parametrize(
    'settings',
    [
        {'lr_schedule': 'reduce_on_plateau', 'early_stopping': True, 'epochs': 4},
        {'precision': 'bfloat16'},
        {'callbacks': ['throughput', 'lr_monitor']},
        {'learning_rate': 'auto'},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_work_on_one_device_work_on_eight(settings, count_compiles):
    config = TrainingConfig(**SETTINGS | settings)
    expected = trained('mlp', ModelTrainer(config))
    got = trained('mlp', DistributedTrainer(config))
    tolerance = 0.02 if 'precision' in settings else 1e-5
    for name in ('loss', 'val_loss', 'val_f1'):
        np.testing.assert_allclose(got[0][name], expected[0][name], atol=tolerance)


def test_several_validation_sets_by_steps():
    sets = {'in': (X, Y), 'part': (X[:33], Y[:33])}  # no multiple of the devices
    curves = []
    for devices, storage in [(None, {}), (8, {}), (8, {'device_data_bytes': 1000})]:
        config = TrainingConfig(**SETTINGS | storage | {'epochs': 1, 'validate_every': 3})
        model = Wide(nnx.Rngs(0))
        trainer = ModelTrainer(config, devices=devices)
        curves.append(trainer.train(model, X, Y, sets, progress=False))
    for curve in curves[1:]:
        assert curve.epoch_ends == [3, 6, 7]
        for name in ('val_in_loss', 'val_part_loss'):
            np.testing.assert_allclose(curve[name], curves[0][name], atol=1e-5)


def test_a_run_that_diverges_is_rolled_back():
    config = TrainingConfig(**SETTINGS | {'learning_rate': 1e30, 'gradient_clip_norm': None})
    with pytest.warns(UserWarning, match='diverged'):
        _, _, arrays = trained('mlp', DistributedTrainer(config))
    assert all(np.isfinite(array).all() for array in arrays.values())


# --- afterwards -------------------------------------------------------------------------------


def test_a_sharded_model_predicts_evaluates_and_is_saved(sharded_model, tmp_path):
    probabilities = predict_proba(sharded_model, X)
    kernel = sharded_model.up.kernel[...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 64)}
    alone = Wide(nnx.Rngs(1))
    manager = ModelManager()
    manager.save_model(sharded_model, tmp_path / 'model')
    manager.load_model(tmp_path / 'model', into=alone)
    np.testing.assert_allclose(predict_proba(alone, X), probabilities, atol=1e-6)
    assert_equal_metrics(sharded_model, alone)


def assert_equal_metrics(one, other):
    evaluations = [ModelEvaluator().evaluate(model, X, Y) for model in (one, other)]
    for name, value in evaluations[0].metrics.items():
        assert evaluations[1][name] == pytest.approx(value, abs=1e-6), name


def test_a_sharded_model_trains_on(sharded_model):
    model = nnx.clone(sharded_model)
    before = ModelEvaluator().evaluate(model, X, Y).metrics['log_loss']
    DistributedTrainer(TrainingConfig(epochs=5), strategy='fsdp').train(model, X, Y, progress=False)
    assert ModelEvaluator().evaluate(model, X, Y).metrics['log_loss'] < before


@pytest.fixture
def used(monkeypatch):
    """Returns the set of devices that compute outputs of models."""
    found = set()
    original = forward._forward

    def recording(*args):
        outputs = original(*args)
        found.update(*(array.devices() for array in jax.tree.leaves(outputs)))
        return outputs

    monkeypatch.setattr(forward, '_forward', recording)
    return found


@pytest.mark.parametrize('count', [1, 3, 8])
def test_an_evaluator_uses_the_devices_passed_to_it(count, used):
    devices = jax.devices()[-count:]
    model = Wide(nnx.Rngs(0))
    analysis = ModelEvaluator(devices=devices).analyze_performance(model, X, Y)
    assert used == set(devices)
    expected = ModelEvaluator(devices=jax.devices()[:1]).evaluate(model, X, Y)
    for name, value in expected.metrics.items():
        assert analysis.get_metrics()[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize('strategy', ['margin', 'core_set', 'badge'])
def test_active_learning_scores_on_all_devices_and_queries_as_on_one(strategy, used, monkeypatch):
    def query():
        learner = ActiveLearner(Wide(nnx.Rngs(0)), strategy, config=TrainingConfig(epochs=1))
        learner.start(X[40:], X[:40], Y[:40])
        return learner.query(5).tolist()

    rows = query()
    assert used == set(jax.devices())
    used.clear()
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1])
    assert query() == rows
    assert used == set(jax.devices()[:1])


def test_a_saved_model_is_loaded_as_shards(sharded_model, tmp_path):
    manager = ModelManager()
    manager.save_model(sharded_model, tmp_path / 'model')
    other = Wide(nnx.Rngs(1))
    DistributedTrainer(TrainingConfig(epochs=1), num_gpus=4, strategy='fsdp').train(
        other, X, Y, progress=False
    )
    before = jax.tree.map(lambda leaf: leaf.sharding, nnx.state(other, nnx.Param))
    manager.load_model(tmp_path / 'model', into=other)
    assert jax.tree.map(lambda leaf: leaf.sharding, nnx.state(other, nnx.Param)) == before
    assert_equal_metrics(sharded_model, other)


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize('devices', [2, [], ['cpu:0']])
def test_other_values_are_not_devices(devices):
    with pytest.raises(ConfigError, match=r'devices: got .* expected JAX devices'):
        ModelEvaluator(devices=devices)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"strategy: got 'mirored'.*Did you mean 'mirrored'"):
        DistributedTrainer(strategy='mirored')
    with pytest.raises(ConfigError, match=r'num_gpus: got 9, but there are 8 devices \(cpu\)'):
        DistributedTrainer(num_gpus=9)
    with pytest.raises(ConfigError, match='xla_force_host_platform_device_count=9'):
        DistributedTrainer(num_gpus=9)
    for wrong in (0, -1, 1.5, True, '2'):
        with pytest.raises(ConfigError, match='num_gpus: got'):
            DistributedTrainer(num_gpus=wrong)
    with pytest.raises(ConfigError, match='config: got dict'):
        DistributedTrainer({'epochs': 1})
