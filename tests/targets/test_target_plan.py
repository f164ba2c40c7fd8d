"""Plans for devices that are not attached."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError
from thinkml.models import from_linen
from thinkml.training import ModelTrainer, TrainingConfig
from thinkml.training.accelerators import ACCELERATORS
from thinkml.training.compile_targets import open_target

X, y = np.zeros((512, 64), np.float32), np.arange(512) % 10


def make_mlp(width=256):
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(64, width, rngs=rngs), nnx.relu, nnx.Linear(width, width, rngs=rngs),
        nnx.relu, nnx.Linear(width, 10, rngs=rngs),
    )  # fmt: skip


def plan_for(target, model=None, strategy=None, **settings):
    trainer = ModelTrainer(TrainingConfig(batch_size=128, **settings), strategy=strategy)
    return trainer.plan(model or nnx.eval_shape(make_mlp), X, y, target=target)


def part(plan, name):
    return next(part for part in plan.memory.parts if part.name == name)


@pytest.mark.parametrize(
    ('name', 'count'),
    [*((name, 1) for name in ACCELERATORS), ('h200:8', 8), ('v5e:4x4', 16), ('v4:2x2x2', 8)],
)
def test_each_accelerator_can_be_compiled_for(name, count):
    target = open_target(name)
    assert len(target.devices) == count
    layout = target.layout(shards_state=False)
    x = jax.ShapeDtypeStruct((256, 256), np.float32, sharding=layout.rows)
    program = target.compile(jax.jit(lambda x: (x @ x.T).sum()).lower(x))
    assert program.memory.argument_size_in_bytes == 256 * 256 * 4 // count


@pytest.mark.parametrize('target', ['h200:8', 'v5e:4x4'])
def test_the_bytes_of_the_state_are_those_of_the_strategy(target):
    mirrored, fsdp = (plan_for(target, strategy=name) for name in ('mirrored', 'fsdp'))
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(nnx.eval_shape(make_mlp)))
    assert part(mirrored, 'parameters').bytes_per_device == params
    assert part(fsdp, 'parameters').bytes_per_device < 1.1 * params / mirrored.memory.num_devices
    assert mirrored.strategy_bytes == fsdp.strategy_bytes
    assert mirrored.strategy_bytes['fsdp'] == fsdp.memory.bytes_per_device
    assert (
        mirrored.fits and mirrored.memory.free_bytes == open_target(target).accelerator.usable_bytes
    )


def test_the_bounds_follow_from_the_program_and_the_datasheet():
    plan = plan_for('h200:8', strategy='mirrored')
    products = 2 * 128 * (2 * 64 * 256 + 3 * (256 * 256 + 256 * 10))  # no gradient of the inputs
    assert plan.bounds.flops == products
    assert plan.bounds.compute_seconds == pytest.approx(products / 8 / 494e12)
    count, num_bytes = plan.bounds.collectives['all-reduce']
    assert count == 1
    assert plan.bounds.link_seconds == pytest.approx(num_bytes * 2 * 7 / 8 / 450e9)
    assert plan.bounds.seconds == plan.bounds.link_seconds and plan.bounds.limited_by == 'links'
    narrow = plan_for('h200:8', strategy='mirrored', precision='bfloat16')
    assert narrow.bounds.compute_seconds == pytest.approx(products / 8 / 989e12)


def test_the_largest_batch_that_fits_is_at_most_the_data():
    plan = plan_for('v5e')
    assert (plan.batch_size, plan.largest_batch_size) == (128, 512)


def test_a_model_too_large_for_the_devices_and_this_machine_is_planned_from_shapes():
    class Huge(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.Dense(60_000)(nn.Dense(60_000)(x)))

    before = len(jax.live_arrays())
    plan = plan_for('v5e:2x2', from_linen(Huge()), strategy='fsdp')
    assert part(plan, 'parameters').num_bytes > 14e9
    # The compiler for a TPU ends where memory does, so there is no program to read.
    assert not plan.fits and plan.largest_batch_size is None and plan.bounds is None
    assert part(plan, 'gradients, activations').bytes_per_device > 16e9
    assert 'does not fit' in str(plan) and 'no program' in str(plan)
    assert len(jax.live_arrays()) <= before + 8  # the checks make scalars


def test_it_prints_well_and_is_plain_values():
    plan = plan_for('v5e:2x2', strategy='fsdp')
    text = str(plan)
    assert text.startswith('v5e:2x2, fsdp, batches of 128: 4 devices (tpu)\n')
    assert 'not predictions' in text and 'all-gather' in text and "'mirrored'" in text
    json.dumps(plan.to_dict())


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        ('h300', "expected one of a100, .* Did you mean 'h"),
        ('v5e:3x3', "got 'v5e:3x3', expected the shape of a TPU slice that exists"),
        ('v5e:x', "a text such as 'h200:8'"),
        ('h200:2x2', 'a number of GPUs'),
        (8, "a text such as 'h200:8'"),
    ],
)
def test_a_target_that_does_not_exist_is_named(target, message):
    with pytest.raises(ConfigError, match=message):
        plan_for(target)


def test_a_program_that_jax_can_not_read_is_planned_without_its_exchanges(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError('INTERNAL: an operation of a newer compiler')

    monkeypatch.setattr(jax.stages.Compiled, 'as_text', fail)
    plan = plan_for('v5e')
    assert plan.fits and plan.bounds is None
    assert 'can not read the program' in str(plan)
    json.dumps(plan.to_dict())
