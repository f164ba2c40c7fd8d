"""Tests of the memory of compiled programs: they update their state in place."""

import re
import warnings

import jax
import pytest
from flax import nnx

from tests.core.test_loop import METRICS, feed_of, prepare, problem
from tests.models_for_tests import DropoutBatchNorm, mlp
from thinkml.core import functionalize, get_loss, make_eval_step
from thinkml.core.parallel.sharding import ONE_DEVICE
from thinkml.core.train.dispatch import _run_eval, _run_steps
from thinkml.core.train.loop import empty_metrics
from thinkml.data import place


def num_bytes(tree):
    leaves = jax.tree.leaves(jax.tree.map(_data, tree))
    return sum(leaf.addressable_data(0).nbytes for leaf in leaves)


def _data(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def num_aliased(compiled):
    """Returns the number of results that reuse the memory of an argument."""
    header = compiled.as_text().split('entry_computation_layout')[0]
    return len(re.findall(r'\{[\d, ]*\}: \(\d+,', header))


def assert_updated_in_place(run, static, arguments, place_of_state):
    lowered = run.lower(*static, *arguments)
    compiled = lowered.compile()
    state = arguments[place_of_state]
    assert num_aliased(compiled) == len(jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes == num_bytes(state)
    leaves = jax.tree.leaves(state)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # for donated arrays that could not be used
        run(*static, *arguments)
    assert all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.parametrize(
    'options', [{}, {'ema_decay': 0.9}, {'accumulate_steps': 4}, {'optimizer': 'adamw'}], ids=str
)
@pytest.mark.parametrize('model', [mlp(4, 3), DropoutBatchNorm(4, 3, nnx.Rngs(0))])
def test_a_chunk_updates_its_state_in_place(model, options):
    x, y = problem()
    step, state = prepare(model, x, **options)
    block = next(iter(feed_of(x, y).blocks(0, 0)))
    carry = (state, empty_metrics(METRICS))
    arguments = (block.data, block.plan, carry, 0, 3)
    assert_updated_in_place(_run_steps, (step, True, ONE_DEVICE), arguments, 2)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((block.data, block.plan)))


def test_an_evaluation_updates_its_totals_in_place():
    x, y = problem()
    functional = functionalize(mlp(4, 3), x[:1], jax.random.key(0))
    step = make_eval_step(functional.apply, get_loss('cross_entropy'), METRICS)
    arguments = (
        empty_metrics(METRICS), functional.params, functional.model_state, place(x, y),
    )  # fmt: skip
    assert_updated_in_place(_run_eval, (step, 8, ONE_DEVICE), arguments, 0)
