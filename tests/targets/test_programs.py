"""The programs of a training, as the compilers for an H200 and for TPUs write them."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from target_programs import (
    STEPS,
    Case,
    lower_by_hand,
    lower_by_thinkml,
    lower_evaluation,
    lower_prediction,
    training_of,
)

from thinkml.core.model.attention import dot_product_attention
from thinkml.core.xla.compiled_program import summed
from thinkml.training.compile_targets import open_target

BATCH, CLASSES = 128, 10
WIDE, DEPTH = 1024, 8
_PRODUCT = re.compile('stablehlo.(dot_general|convolution)')


def make_mlp():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(64, 256, rngs=rngs), nnx.relu,
        nnx.Linear(256, 256, rngs=rngs), nnx.relu,
        nnx.Linear(256, CLASSES, rngs=rngs),
    )  # fmt: skip


def make_deep_mlp():
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(WIDE, WIDE, rngs=rngs) for _ in range(DEPTH)]
    return nnx.Sequential(*(part for layer in layers for part in (layer, jnp.tanh)))


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.depthwise = nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=rngs)
        self.out = nnx.Linear(32, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.out(nnx.relu(self.depthwise(x)).mean((1, 2)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(64, rngs=rngs)
        self.up, self.down = nnx.Linear(64, 256, rngs=rngs), nnx.Linear(256, 64, rngs=rngs)
        self.out = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return self.out((x + self.down(nnx.gelu(self.up(x)))).mean(1))


NETS = {
    'mlp': (make_mlp, (BATCH, 64)),
    'deep': (make_deep_mlp, (BATCH, WIDE)),
    'cnn': (lambda: ConvNet(nnx.Rngs(0)), (BATCH, 16, 16, 3)),
    'transformer': (lambda: Transformer(nnx.Rngs(0)), (BATCH, 32, 64)),
}


KINDS = [net for net in NETS if net != 'deep']


@functools.cache
def program(net, target, strategy='mirrored', precision='float32', lower=lower_by_thinkml):
    return open_target(target).compile(lower(case_of(net, target, strategy, precision)))


def programs(net, target):
    """Returns the program of ThinkML and the one written by hand."""
    return program(net, target), program(net, target, lower=lower_by_hand)


def case_of(net, target, strategy='mirrored', precision='float32'):
    make, shape = NETS[net]
    layout = open_target(target).layout(shards_state=strategy == 'fsdp')
    return Case(nnx.eval_shape(make), shape, CLASSES, layout, precision)


def state_bytes(case):
    """Returns the bytes of a device that hold the parameters and the optimizer's state."""
    state = training_of(case).state
    leaves = jax.tree.leaves((state.params, state.opt_state, state.model_state))
    shapes = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in leaves)
    return sum(functools.reduce(lambda a, b: a * b, shape, 1) * size for shape, size in shapes)


@pytest.mark.parametrize('net', KINDS)
def test_a_gpu_runs_a_loop_of_known_length_without_asking_the_host(net):
    ours, by_hand = programs(net, 'h200')
    (loop,) = ours.loops
    assert loop.trip_count == STEPS == by_hand.loops[0].trip_count
    assert loop.host_transfers == 0 and all(inner.trip_count for inner in loop.inner)


@pytest.mark.parametrize('net', KINDS)
@pytest.mark.parametrize('target', ['h200', 'v5e'])
def test_a_step_takes_no_more_memory_and_kernels_than_by_hand(net, target):
    ours, by_hand = programs(net, target)
    small = 2**18 if target == 'v5e' else 0  # a TPU gives each number a tile of some kilobytes
    by_hand_bytes = by_hand.memory.temp_size_in_bytes
    assert ours.memory.temp_size_in_bytes <= 1.05 * by_hand_bytes + small
    if target == 'h200':
        assert ours.loops[0].num_kernels <= 1.1 * by_hand.loops[0].num_kernels
    else:  # exact sums of the loss and the metrics, whatever the size of the net
        fusions = [program.loops[0].kernels['fusion'] for program in (ours, by_hand)]
        assert fusions[0] <= fusions[1] + 10


@pytest.mark.parametrize('target', ['h200', 'h200:4', 'v5e:2x2'])
@pytest.mark.parametrize('strategy', ['mirrored', 'fsdp'])
def test_the_state_is_updated_in_place(target, strategy):
    ours = program('mlp', target, strategy)
    assert ours.donated_bytes >= state_bytes(case_of('mlp', target, strategy))


def test_a_cpu_rewriting_reaches_no_program_of_a_gpu():
    text = lower_by_thinkml(case_of('cnn', 'h200')).as_text()
    by_hand = lower_by_hand(case_of('cnn', 'h200')).as_text()
    # The forward pass, and the gradients of the kernels and of one input.
    assert text.count('stablehlo.convolution') == by_hand.count('stablehlo.convolution') == 5
    ours, compiled = programs('cnn', 'h200')
    assert ours.text.count('__cudnn$conv') == compiled.text.count('__cudnn$conv') > 0


@pytest.mark.parametrize('net', KINDS)
@pytest.mark.parametrize('target', ['h200:4', 'v5e:2x2'])
def test_a_mirrored_step_sums_the_gradients_in_as_few_exchanges_as_by_hand(net, target):
    ours, by_hand = (summed(program.collectives) for program in programs(net, target))
    assert set(ours) == set(by_hand) == {'all-reduce'}  # the data stays where it is
    assert ours['all-reduce'][0] <= by_hand['all-reduce'][0]
    numbers = 1024  # of the loss and the metrics
    assert ours['all-reduce'][1] <= by_hand['all-reduce'][1] + numbers


@pytest.mark.parametrize('target', ['h200:4', 'v5e:2x2'])
def test_an_fsdp_step_gathers_parameters_and_scatters_gradients(target):
    ours = program('mlp', target, 'fsdp')
    state = training_of(case_of('mlp', target, 'fsdp')).state
    sharded = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state.params)
        if not leaf.sharding.is_fully_replicated
    )
    exchanged = summed(ours.collectives)
    # For a TPU, XLA sums small arrays in one all-reduce instead.
    assert 0.7 * sharded < exchanged['reduce-scatter'][1] <= sharded
    # The kernel of the second layer is gathered for the gradient of its input as well.
    assert sharded <= exchanged['all-gather'][1] <= 2 * sharded
    assert exchanged['all-reduce'][1] < 0.3 * sharded
    assert set(exchanged) == {'reduce-scatter', 'all-gather', 'all-reduce'}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('target', ['h200:4', 'v5e:2x2', 'v5e:4x4'])
def test_an_fsdp_step_holds_the_parameters_of_two_layers(target, precision):
    ours = program('deep', target, 'fsdp', precision)
    layer = WIDE * WIDE * (4 if precision == 'float32' else 2)
    # Two layers, as many gradients, and the activations, where all parameters are 8 layers.
    assert ours.memory.temp_size_in_bytes < 5 * layer
    kinds = {one.dtype for one in ours.collectives if one.kind == 'all-gather'}
    assert precision == 'float32' or 'bf16' in kinds
    exchanged = summed(ours.collectives)
    assert exchanged['all-gather'][1] <= 2.1 * DEPTH * layer  # twice, in the dtype of the products


def test_the_state_of_fsdp_takes_less_memory_on_more_devices():
    sizes = [
        program('mlp', f'h200:{count}', 'fsdp').memory.argument_size_in_bytes for count in (2, 8)
    ]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ('target', 'tokens', 'kernel', 'count'),
    [('h200:2', 333, '__cudnn$fmha', 2), ('v5e:2x2', 1024, '"tpu_custom_call"', 3)],
)
def test_attention_uses_the_kernel_of_the_target(target, tokens, kernel, count):
    layout = open_target(target).layout(shards_state=False)

    def compiled(attend):
        class Net(nnx.Module):
            def __init__(self, rngs):
                self.qkv = nnx.Linear(64, 3 * 128, rngs=rngs)
                self.out = nnx.Linear(64, CLASSES, rngs=rngs)

            def __call__(self, x):
                heads = self.qkv(x).reshape(*x.shape[:2], 3, 2, 64)
                return self.out(attend(*(heads[:, :, i] for i in range(3))).mean((1, 2)))

        case = Case(
            nnx.eval_shape(lambda: Net(nnx.Rngs(0))),
            (BATCH, tokens, 64),
            CLASSES,
            layout,
            'bfloat16',
        )
        return open_target(target).compile(lower_by_thinkml(case))

    fused, by_xla = compiled(dot_product_attention), compiled(jax.nn.dot_product_attention)
    assert fused.text.count(kernel) == count and kernel not in by_xla.text
    assert fused.memory.temp_size_in_bytes < by_xla.memory.temp_size_in_bytes


@pytest.mark.parametrize('net', KINDS)
def test_bfloat16_computes_no_product_in_float32_that_the_step_by_hand_does_not(net):
    case = case_of(net, 'h200', precision='bfloat16')
    ours, by_hand = (
        [line for line in lowered.as_text().splitlines() if _PRODUCT.search(line)]
        for lowered in (lower_by_thinkml(case), lower_by_hand(case))
    )
    assert len(ours) == len(by_hand)
    # By hand BatchNorm's float32 statistics make the layers after it float32.
    assert sum('bf16' in line for line in ours) >= sum('bf16' in line for line in by_hand) > 0


@pytest.mark.parametrize('target', ['h200', 'v5e:2x2'])
def test_evaluation_and_prediction_compile_and_ask_the_host_for_nothing(target):
    for lower in lower_evaluation, lower_prediction:
        compiled = program('mlp', target, lower=lower)
        assert not any(loop.host_transfers for loop in compiled.loops)
