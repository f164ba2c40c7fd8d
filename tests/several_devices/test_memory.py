"""Tests of the memory of programs on several devices: they update their state in place."""

import jax
import pytest
from flax import nnx

from tests.core.test_memory import assert_updated_in_place
from tests.several_devices.test_same_curve import STRATEGIES, ConvBatchNorm, X, Y, combinations
from thinkml.core.train import dispatch
from thinkml.training import DistributedTrainer, TrainingConfig

SETTINGS = {'plain': {}, 'ema': {'ema_decay': 0.9}, 'accumulated': {'accumulate_steps': 2}}
COVERING = {('mirrored', 'plain'), ('fsdp', 'ema'), ('mirrored', 'accumulated')}


@pytest.mark.compiled
@pytest.mark.parametrize(('strategy', 'settings'), combinations(COVERING, STRATEGIES, SETTINGS))
def test_a_chunk_updates_its_state_in_place(strategy, settings, monkeypatch):
    calls, run_steps = [], dispatch._run_steps

    def record(*arguments):
        if not calls:
            calls.append(jax.tree.map(_copy, arguments))
        return run_steps(*arguments)

    monkeypatch.setattr(dispatch, '_run_steps', record)
    config = TrainingConfig(epochs=1, batch_size=32, **SETTINGS[settings])
    trainer = DistributedTrainer(config, strategy=strategy)
    trainer.train(ConvBatchNorm(nnx.Rngs(0)), X, Y, progress=False)
    (arguments,) = calls
    assert_updated_in_place(run_steps, arguments[:3], arguments[3:], 2)


def _copy(leaf):
    return jax.numpy.copy(leaf) if isinstance(leaf, jax.Array) else leaf
