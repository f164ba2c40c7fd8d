"""Cross-entropy in chunks: the steps of the plain loss, in less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thinkml import core
from thinkml.core.objectives.elements import IGNORED
from thinkml.core.objectives.heads import Head, HeadLosses
from thinkml.core.objectives.losses import CrossEntropy
from thinkml.core.parallel.sharding import ONE_DEVICE
from thinkml.errors import ConfigError
from thinkml.training import ModelTrainer, TrainingConfig
from thinkml.training.program import lower_step

ROWS, TOKENS, WORDS = 8, 5, 11
METRICS = ('accuracy', 'perplexity', 'top_3_accuracy', 'f1_macro', 'grad_norm', 'update_ratio')


class LanguageModel(nnx.Module):
    """A language model that ends in a dense layer, or in the table of its embedding."""

    def __init__(self, words=WORDS, *, tied=False, use_bias=True):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(words, 16, rngs=rngs)
        self.out = None if tied else nnx.Linear(16, words, use_bias=use_bias, rngs=rngs)

    def __call__(self, x):
        features = jnp.tanh(self.embed(x)).cumsum(axis=1)
        return self.embed.attend(features) if self.out is None else self.out(features)


class Capped(nnx.Module):
    def __init__(self):
        self.model = LanguageModel()

    def __call__(self, x):
        return jnp.tanh(self.model(x))


class Classifier(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(3, WORDS, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(x)


def sentences():
    rng = np.random.default_rng(0)
    x = rng.integers(0, WORDS, (ROWS, TOKENS))
    is_ignored = np.arange(TOKENS) >= rng.integers(1, TOKENS + 1, ROWS)[:, None]
    weight = rng.random(ROWS) * (np.arange(ROWS) < ROWS - 2)  # the last two rows are padding
    return core.Batch(*map(jnp.asarray, (
        x, np.where(is_ignored, IGNORED, (x * 3 + 1) % WORDS), weight.astype(np.float32)
    )), mask=jnp.asarray(weight > 0, jnp.float32))  # fmt: skip


def step_and_state(model, loss, batch, *, parts=1, remat=False, dtype=None, metrics=METRICS):
    functional = core.functionalize(model, batch.x, jax.random.key(0), dtype)
    tx = core.make_optimizer('sgd')
    element_shape = batch.y.shape[1:] if batch.y.shape == batch.x.shape else ()
    words = jax.eval_shape(
        lambda *arrays: functional.apply(*arrays, batch.x, key=None, train=False)[0],
        functional.params, functional.model_state,
    ).shape[-1]  # fmt: skip
    collection = functools.partial(core.make_metrics, kind='multiclass', num_outputs=words)
    step = core.make_train_step(
        functional.apply, loss, tx, collection(metrics), accumulate_steps=parts, remat=remat,
        element_shape=element_shape,
    )  # fmt: skip
    of_evaluation = [name for name in metrics if name not in ('grad_norm', 'update_ratio')]
    evaluate = core.make_eval_step(
        functional.apply, loss, collection(of_evaluation), element_shape=element_shape
    )
    state = core.init_state(
        functional.params, functional.model_state, tx, jax.random.key(0), learning_rate=0.5
    )
    return step, evaluate, state


def trained(model, loss, batch, **settings):
    """Returns the parameters, and the values of the last step and of an evaluation."""
    step, evaluate, state = step_and_state(model, loss, batch, **settings)
    for _ in range(5):
        state, output = jax.jit(step)(state, batch)
    evaluated = jax.jit(evaluate)(state.params, state.model_state, batch)
    return state.params, core.compute(output.metrics), core.compute(evaluated)


def assert_same_training(model, loss, chunk, batch, atol=1e-5, **settings):
    plain = trained(model, loss, batch, **settings)
    chunked = trained(model, dataclasses.replace(loss, chunk=chunk), batch, **settings)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), chunked, plain)


@pytest.mark.parametrize('chunk', [1, 7, ROWS * TOKENS, 1000])
def test_a_chunk_of_any_size_gives_the_plain_training(chunk):
    assert_same_training(LanguageModel(), CrossEntropy(), chunk, sentences())


@pytest.mark.parametrize(
    ('model', 'loss', 'settings'),
    [
        (LanguageModel(tied=True), CrossEntropy(), {}),
        (LanguageModel(use_bias=False), CrossEntropy(0.1), {}),
        (LanguageModel(), CrossEntropy(0.1), {'parts': 4}),
        (LanguageModel(tied=True), CrossEntropy(), {'parts': 2, 'remat': True}),
        (LanguageModel(), CrossEntropy(), {'dtype': jnp.bfloat16, 'atol': 5e-3}),
        (LanguageModel(tied=True), CrossEntropy(), {'dtype': jnp.bfloat16, 'atol': 5e-3}),
    ],
    ids=['tied', 'no bias', 'accumulated', 'tied, remat', 'bfloat16', 'tied, bfloat16'],
)
def test_models_and_settings_of_a_step(model, loss, settings):
    assert_same_training(model, loss, 6, sentences(), **settings)


@pytest.mark.parametrize('mixed', [False, True], ids=['classes', 'probabilities'])
def test_rows_with_one_target(mixed):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(ROWS, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, WORDS, ROWS))
    if mixed:
        labels = 0.7 * jax.nn.one_hot(labels, WORDS) + 0.3 * jax.nn.one_hot(labels[::-1], WORDS)
    batch = core.Batch(x, labels, jnp.ones(ROWS))
    assert_same_training(Classifier(), CrossEntropy(0.1), 3, batch)


@pytest.mark.compiled
@pytest.mark.parametrize('tied', [False, True])
def test_the_logits_of_all_tokens_are_never_in_memory(tied):
    batch = core.Batch(jnp.zeros((16, 256), int), jnp.zeros((16, 256), int), jnp.ones(16))

    def temporaries(loss):
        step, _, state = step_and_state(
            LanguageModel(8192, tied=tied), loss, batch, metrics=('accuracy', 'perplexity')
        )
        lowered = lower_step(step, ONE_DEVICE, (state, batch))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = 4096 * 8192 * 4
    assert temporaries(CrossEntropy()) > 2 * logits
    assert temporaries(CrossEntropy(chunk=256)) < logits / 3


# --- errors -------------------------------------------------------------------------------------


def test_a_model_that_does_not_end_in_a_dense_layer(count_compiles):
    batch = sentences()
    x, y = np.asarray(batch.x), np.abs(np.asarray(batch.y))
    trainer, model = ModelTrainer(TrainingConfig(epochs=1)), Capped()

    def train():
        with pytest.raises(
            ConfigError, match=r'CrossEntropy with a chunk .*after its last product'
        ):
            trainer.train(model, x, y, loss_fn=CrossEntropy(chunk=8), progress=False)

    assert count_compiles(train) == 0


def test_metrics_of_all_scores_or_whole_rows_and_several_heads_are_refused():
    loss, apply, tx = CrossEntropy(chunk=8), (lambda *_, **__: None), core.make_optimizer('sgd')
    ranked = core.make_metrics(('roc_auc',), kind='multiclass', num_outputs=WORDS, capacity=64)
    with pytest.raises(ConfigError, match="metrics: got 'roc_auc' beside CrossEntropy with a chun"):
        core.make_train_step(apply, loss, tx, ranked)
    of_rows = core.make_metrics(('exact_match',), kind='multiclass', num_outputs=WORDS)
    with pytest.raises(ConfigError, match="metrics: got 'exact_match' beside CrossEntropy with a"):
        core.make_train_step(apply, loss, tx, of_rows, element_shape=(TOKENS,))
    heads = HeadLosses((('word', Head(loss)),))
    with pytest.raises(ConfigError, match='with a chunk for a model with several heads'):
        core.make_train_step(apply, heads, tx, core.make_metrics())


@pytest.mark.parametrize('chunk', [0, 1.5, True])
def test_a_chunk_is_a_whole_number(chunk):
    with pytest.raises(ConfigError, match=r'chunk: got .*, expected a whole number of at least 1'):
        CrossEntropy(chunk=chunk)
