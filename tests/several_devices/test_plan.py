"""Tests of memory plans against the memory that a training uses."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from tests.several_devices.test_same_curve import ConvBatchNorm, X, Y, batches
from tests.several_devices.test_whole_workflow import Wide
from thinkml.errors import ConfigError, DataError
from thinkml.models import from_linen
from thinkml.training import DistributedTrainer, TrainingConfig
from thinkml.training import memory_plan as plan_module

STATE = {'parameters', 'state of the optimizer', 'moving average'}


def plan_of(model=None, data=(X, Y), strategy='mirrored', num_gpus=None, **settings):
    trainer = DistributedTrainer(TrainingConfig(**settings), strategy=strategy, num_gpus=num_gpus)
    return trainer.plan(model or Wide(nnx.Rngs(0)), *data)


@functools.cache
def plan_of_wide(**settings):
    return plan_of(**settings)


def part(plan, name):
    return next(part for part in plan.parts if part.name == name)


@pytest.mark.parametrize('strategy', ['mirrored', 'fsdp'])
def test_the_bytes_of_the_state_are_those_of_a_training(strategy):
    sizes = []

    def look(run):
        leaves = jax.tree.leaves((run.state.params, run.state.opt_state, run.state.ema))
        sizes.append(sum(leaf.addressable_data(0).nbytes for leaf in leaves))

    settings = {'epochs': 1, 'ema_decay': 0.9}
    plan = plan_of(strategy=strategy, **settings)
    trainer = DistributedTrainer(TrainingConfig(**settings, callbacks=[look]), strategy=strategy)
    trainer.train(Wide(nnx.Rngs(0)), X, Y, progress=False)
    assert sum(p.bytes_per_device for p in plan.parts if p.name in STATE) == sizes[0]


def test_with_fsdp_a_device_has_an_eighth():
    kernel = next(a for a in plan_of_wide(strategy='fsdp').arrays if a.name == 'params/up/kernel')
    assert (kernel.shape, kernel.placed) == ((64, 512), 'sharded')
    assert kernel.num_bytes == 64 * 512 * 4 == 8 * kernel.bytes_per_device
    mirrored = next(a for a in plan_of_wide().arrays if a.name == 'params/up/kernel')
    assert (mirrored.placed, mirrored.bytes_per_device) == ('replicated', kernel.num_bytes)


@pytest.mark.parametrize(
    ('bytes_', 'placed'),
    [(None, 'replicated'), (20_000, 'sharded'), (4_000, 'on the host, streamed')],
)
def test_the_placement_of_the_data(bytes_, placed):
    plan = plan_of_wide(device_data_bytes=bytes_)
    data = part(plan, 'X_train')
    assert data.placed == placed
    assert data.num_bytes > 203 * 64 * 4
    if bytes_ == 20_000:
        assert data.bytes_per_device < data.num_bytes / 7 + 1000
    if bytes_ == 4_000:
        assert data.bytes_per_device < data.num_bytes


@pytest.mark.compiled
def test_larger_batches_take_more_and_accumulated_ones_do_not():
    wide, small, parts = (
        part(
            plan_of(ConvBatchNorm(nnx.Rngs(0)), batch_size=size, accumulate_steps=steps),
            'gradients, activations',
        )
        for size, steps in ((128, 1), (16, 1), (16, 8))
    )
    assert wide.bytes_per_device > small.bytes_per_device
    assert parts.bytes_per_device < wide.bytes_per_device


def test_no_copy_is_kept_if_no_step_can_be_undone():
    names = {part.name for part in plan_of(on_nan='ignore').parts}
    assert 'copy to return to' not in names
    assert 'copy to return to' in {part.name for part in plan_of_wide().parts}


def test_a_model_that_fits_nowhere_is_planned_without_being_made(monkeypatch):
    class Huge(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(100_000)(x.reshape(len(x), -1))
            return nn.Dense(3)(nn.Dense(100_000)(x))

    monkeypatch.setattr(plan_module, 'free_bytes', lambda layout: 80 * 10**9)
    mirrored = plan_of(from_linen(Huge()), batch_size=8, num_gpus=8)
    assert part(mirrored, 'parameters').num_bytes > 40e9
    assert mirrored.fits is False
    assert "strategy='fsdp'" in str(mirrored)
    assert part(plan_of(from_linen(Huge()), strategy='fsdp'), 'parameters').bytes_per_device < 6e9


def test_it_prints_well():
    plan = plan_of_wide()
    text = str(plan)
    assert text.startswith('8 devices (cpu)\n') and max(map(len, text.splitlines())) <= 100
    assert 'It fits' in text or 'does not fit' in text
    assert repr(plan) == text
    unknown = dataclasses.replace(plan, free_bytes=None)
    assert unknown.fits is None and 'is unknown' in str(unknown)
    assert plan.to_dict()['bytes_per_device'] == sum(p.bytes_per_device for p in plan.parts)


def test_plans_for_batches_and_for_one_device():
    assert 'X_train' not in {p.name for p in plan_of(data=(batches,), epochs=1).parts}
    alone = plan_of(num_gpus=1)
    assert alone.num_devices == 1
    assert part(alone, 'parameters').bytes_per_device == part(alone, 'parameters').num_bytes


def test_a_plan_refuses_the_same_arguments_as_training():
    with pytest.raises(DataError, match='y_train'):
        plan_of(data=(X, Y[:-1]))
    with pytest.raises(ConfigError, match='metrics'):
        DistributedTrainer().plan(Wide(nnx.Rngs(0)), X, Y, metrics=['accurcy'])


def test_a_plan_puts_nothing_on_the_devices():
    plan_of()
    before = len(jax.live_arrays())
    model = Wide(nnx.Rngs(0))
    made = len(jax.live_arrays())
    plan = plan_of(model)
    assert len(jax.live_arrays()) <= made + 8, before  # the checks make scalars
    assert plan.num_devices == 8 and np.isfinite(plan.bytes_per_device)
