"""The work of a training in a second: examples, elements and model FLOP utilization."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.core.model import attention
from thinkml.core.train.step import Batch
from thinkml.core.xla.flop_count import count_flops
from thinkml.core.xla.target import tracing_for
from thinkml.data.sequences import bucket_lengths
from thinkml.training import CrossEntropy, ModelTrainer, Objective, TrainingConfig
from thinkml.training.accelerators import ACCELERATORS, accelerator_of
from thinkml.training.callbacks import throughput
from thinkml.training.model_flops import flop_utilization, step_flops

ROWS, BATCH = 70, 20
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)
# Each epoch is one dispatch, which waits 3 s and computes 2 s. The first one compiles.
SECONDS = 5.0
STEPS = 4
# The products of a step of `mlp(4, 3)`: two for each layer's kernel, and one for the hidden values.
FLOPS = 2 * BATCH * (2 * 4 * 16 + 3 * 16 * 3)


def train(model=None, X=X, y=Y, *, weight=None, loss_fn=None, callbacks=(), **settings):
    settings = {'epochs': 2, 'batch_size': BATCH, 'steps_per_dispatch': STEPS} | settings
    config = TrainingConfig(callbacks=['throughput', *callbacks], **settings)
    return ModelTrainer(config).train(
        mlp(4, 3) if model is None else model, X, y, sample_weight=weight, loss_fn=loss_fn,
        progress=False,
    )  # fmt: skip


def on_kind(monkeypatch, device_kind):
    monkeypatch.setattr(throughput, '_device_kind', lambda run: device_kind)


# --- examples and elements --------------------------------------------------------------------


def test_examples_are_counted_without_the_rows_that_fill_up_a_batch(clock):
    history = train()
    np.testing.assert_equal(history['examples_per_second'], [np.nan, ROWS / SECONDS])
    assert not {'elements_per_second', 'mfu'} & set(history)
    # The first dispatch, of three batches, is left out, and with it the time that it waited.
    (rate,) = train(epochs=1, steps_per_dispatch=3)['examples_per_second']
    assert rate == (ROWS - 3 * BATCH) / 2.0


class Tagger(nnx.Module):
    """Returns the logits of each token; a mask changes nothing."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.out = nnx.Embed(7, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens, mask=None):
        return self.out(self.embed(tokens))


WORDS = RNG.integers(1, 7, (ROWS, 6))
TAGS = WORDS % 3
IGNORED = RNG.random((ROWS, 6)) < 0.3


def test_elements_are_counted_without_ignored_ones_and_those_of_weight_0(clock):
    labels, weight = np.where(IGNORED, -100, TAGS), np.ones((ROWS, 6), np.float32)
    weight[:, 0], weight[:, 1] = 0, 7.5
    history = train(Tagger(), WORDS, labels, weight=weight)
    counted = np.count_nonzero(~IGNORED[:, 1:])
    assert history[-1, 'elements_per_second'] == counted / SECONDS
    assert history[-1, 'examples_per_second'] == ROWS / SECONDS


class Loader:
    def __iter__(self):
        labels = np.where(IGNORED, -100, TAGS)
        for begin in range(0, ROWS, BATCH):
            rows = slice(begin, begin + BATCH)
            yield WORDS[rows], labels[rows]

    def __len__(self):
        return STEPS


def test_elements_of_a_stream_are_counted(clock):
    history = train(Tagger(), Loader(), None)
    # The blocks of a stream, and so the dispatches, depend on the time that reading takes.
    seconds = history[-1, 'step_seconds'] * STEPS + 3.0
    assert history[-1, 'elements_per_second'] == pytest.approx((~IGNORED).sum() / seconds)


class Heads(Tagger):
    def __call__(self, tokens):
        tags = super().__call__(tokens)
        return {'tags': tags, 'same': 2 * tags, 'kind': tags.mean(1)}


def test_of_several_heads_the_one_with_the_most_elements_counts(clock):
    labels = {'tags': np.where(IGNORED, -100, TAGS), 'same': TAGS, 'kind': TAGS[:, 0]}
    history = train(Heads(), WORDS, labels)
    assert history[-1, 'elements_per_second'] == WORDS.size / SECONDS


def test_the_progress_bar_shows_what_was_recorded(clock, capsys):
    config = TrainingConfig(callbacks=['throughput', 'lr_monitor'], steps_per_dispatch=STEPS,
                            epochs=2, batch_size=BATCH)  # fmt: skip
    ModelTrainer(config).train(Tagger(), WORDS, TAGS)
    last = capsys.readouterr().err.split('\r')[-1]
    assert 'lr=0.001' in last and f'{WORDS.size / SECONDS:,.0f} elements/s]' in last


# --- model FLOP utilization -------------------------------------------------------------------


def test_mfu_is_the_time_at_the_peak_rate_over_the_time(clock, monkeypatch):
    expected = {
        device_kind: STEPS * FLOPS / ACCELERATORS[name].peak_flops['float32'] / SECONDS
        for device_kind, name in {'NVIDIA H200': 'h200', 'TPU v5 lite': 'v5e'}.items()
    }
    for device_kind, mfu in expected.items():
        on_kind(monkeypatch, device_kind)
        np.testing.assert_allclose(train()['mfu'], [np.nan, mfu])
    on_kind(monkeypatch, 'NVIDIA H200')
    narrow = train(precision='bfloat16')[-1, 'mfu']
    assert narrow == pytest.approx(expected['NVIDIA H200'] * 494 / 989)


def test_operations_are_counted_once_and_nothing_more_is_compiled(monkeypatch, count_compiles):
    counted = []

    def counting(*arguments):
        counted.append(step_flops(*arguments))
        return counted[-1]

    monkeypatch.setattr(throughput, 'step_flops', counting)
    settings = {'epochs': 3, 'steps_per_dispatch': 2}
    train(**settings)
    assert counted == []
    on_kind(monkeypatch, 'NVIDIA H200')
    assert count_compiles(train, **settings) == 0
    assert counted == [{'float32': FLOPS}]


class Chunked(nnx.Module):
    """Has a last layer whose logits can be computed in chunks."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.hidden = nnx.Embed(7, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.out(nnx.relu(self.hidden(self.embed(tokens))))


def test_what_is_computed_again_to_save_memory_does_not_count(clock, monkeypatch):
    on_kind(monkeypatch, 'NVIDIA H200')
    mfu = {
        (remat, chunk): train(
            Chunked(), WORDS, TAGS, remat=remat, loss_fn=CrossEntropy(chunk=chunk), epochs=2
        )[-1, 'mfu']
        for remat, chunk in [(False, None), (True, None), (False, 16)]
    }
    layers = 3 * 8 * 8 + 3 * 8 * 3  # the hidden values of the first layer are trained as well
    least = STEPS * 2 * BATCH * 6 * layers / ACCELERATORS['h200'].peak_flops['float32']
    np.testing.assert_allclose(list(mfu.values()), least / SECONDS)


def test_each_bucket_of_sequences_has_its_own_operations_and_no_padding_counts(clock, monkeypatch):
    on_kind(monkeypatch, 'NVIDIA H200')
    lengths = np.concatenate([RNG.integers(5, 9, BATCH), RNG.integers(25, 33, BATCH)])
    words = [RNG.integers(1, 7, length) for length in lengths]
    history = train(Tagger(), words, [row % 3 for row in words])
    sizes = bucket_lengths(lengths)
    assert len(sizes) == 2
    seconds = len(sizes) * 2.0 + 3.0  # a dispatch for each
    assert history[-1, 'elements_per_second'] == pytest.approx(lengths.sum() / seconds)
    least = 2 * BATCH * sum(sizes) * 3 * 8 * 3 / ACCELERATORS['h200'].peak_flops['float32']
    assert history[-1, 'mfu'] == pytest.approx(least / seconds)


def test_an_objective_has_mfu_and_no_elements(clock, monkeypatch):
    on_kind(monkeypatch, 'NVIDIA H200')
    history = train(loss_fn=Objective(lambda model, batch, key: (model(batch.x) ** 2).sum(1)))
    least = STEPS * FLOPS / ACCELERATORS['h200'].peak_flops['float32']
    assert history[-1, 'mfu'] == pytest.approx(least / SECONDS)
    assert 'elements_per_second' not in history


def test_several_devices_share_the_peak():
    flops = {'float32': 494e12, 'bfloat16': 989e12}
    assert flop_utilization(flops, 4.0, 'NVIDIA H200') == 0.5
    assert flop_utilization(flops, 4.0, 'NVIDIA H200', num_devices=4) == 0.125
    assert flop_utilization({'float64': 1.0}, 1.0, 'NVIDIA H200') is None
    assert flop_utilization(flops, 1.0, 'cpu') is None


# --- the count of a step ----------------------------------------------------------------------


def test_the_step_has_the_products_that_xla_counts_in_a_program_without_a_loop():
    kept = []

    def keep(run):
        kept.append((run.program.model_step, run.state))

    train(epochs=1, callbacks=[keep])
    step, state = kept[0]
    x, y, weight = jnp.zeros((BATCH, 4)), jnp.zeros(BATCH, jnp.int32), jnp.ones(BATCH)
    batch = Batch(x, y, weight)
    counted = step_flops(step, state, batch)
    assert counted == {'float32': FLOPS}
    xla = jax.jit(step).lower(state, batch).compile().cost_analysis()['flops']
    # It counts the optimizer and elementwise operations as well, much for so small a net.
    assert FLOPS < xla < 2 * FLOPS


def test_xla_counts_the_body_of_a_loop_once():
    def powers(x):
        return jax.lax.fori_loop(0, 50, lambda _, y: y @ x, x)

    x = jnp.ones((64, 64))
    product = 2 * 64**3
    xla = jax.jit(powers).lower(x).compile().cost_analysis()['flops']
    assert xla < 2 * product
    assert step_flops(powers, x) == {'float32': 50 * product}


def test_attention_is_counted_as_products_also_where_a_kernel_computes_it(monkeypatch):
    monkeypatch.setattr(attention, '_has_cudnn', lambda: True)
    monkeypatch.setattr(attention, '_by_cudnn', lambda query, *_: query)
    x = jax.ShapeDtypeStruct((2, 16, 4, 8), jnp.bfloat16)
    hopper = types.SimpleNamespace(platform='cuda', compute_capability='9.0')
    with tracing_for(hopper):
        assert count_flops(jax.make_jaxpr(attention.dot_product_attention)(x, x, x).jaxpr) == 0
        counted = step_flops(attention.dot_product_attention, x, x, x)
    assert counted == {'bfloat16': 2 * 2 * 2 * 4 * 16 * 16 * 8}


# --- the table --------------------------------------------------------------------------------

KINDS = {
    'NVIDIA A100-SXM4-40GB': 'a100', 'NVIDIA A100-SXM4-80GB': 'a100',
    'NVIDIA A100 80GB PCIe': 'a100', 'NVIDIA H100 80GB HBM3': 'h100', 'NVIDIA H200': 'h200',
    'NVIDIA B200': 'b200', 'NVIDIA L4': 'l4', 'Tesla T4': 't4', 'TPU v4': 'v4',
    'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p', 'TPU v6 lite': 'v6e',
}  # fmt: skip
UNKNOWN = [
    'cpu', 'NVIDIA H100 PCIe', 'NVIDIA H100 NVL', 'NVIDIA H200 NVL', 'NVIDIA L40S', 'NVIDIA A10G',
    'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'TPU v3', 'TPU v4 lite', 'TPU7x',
]  # fmt: skip


@pytest.mark.parametrize('device_kind', [*KINDS, *UNKNOWN])
def test_a_device_is_known_by_its_kind_alone(device_kind):
    device = types.SimpleNamespace(device_kind=device_kind)
    step = types.SimpleNamespace(devices=lambda: [device])
    run = types.SimpleNamespace(state=types.SimpleNamespace(step=step))
    found = accelerator_of(throughput._device_kind(run))
    assert getattr(found, 'name', None) == KINDS.get(device_kind)


def test_each_accelerator_has_peaks_sources_and_kinds_that_no_other_has():
    kinds = [kind for found in ACCELERATORS.values() for kind in found.device_kinds]
    assert len(kinds) == len(set(kinds)) and set(KINDS) <= set(kinds)
    for found in ACCELERATORS.values():
        assert found.source and found.device_kinds
        assert found.peak_flops['bfloat16'] >= found.peak_flops['float32'] > 1e12
    assert ACCELERATORS['t4'].peak_flops == {
        'float16': 65e12, 'bfloat16': 8.1e12, 'float32': 8.1e12
    }  # fmt: skip
