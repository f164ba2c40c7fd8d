"""How many copies of a state, and of the data, a training holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.core.test_remat import Deep
from tests.models_for_tests import DropoutBatchNorm, SmallCNN, mlp
from thinkml.core.parallel.sharding import ONE_DEVICE
from thinkml.core.train.dispatch import _run_steps
from thinkml.core.train.loop import empty_metrics
from thinkml.errors import ThinkMLWarning
from thinkml.training import (
    EarlyStopping,
    ModelTrainer,
    Objective,
    TrainingConfig,
    divergence,
    memory_plan,
    trainer,
    tuning,
)
from thinkml.training import train_loop as fit
from thinkml.training.callbacks import early_stopping
from thinkml.training.run_parts import make_parts
from thinkml.training.training_data import TrainRequest
from thinkml.training.training_setup import make_setup

pytestmark = pytest.mark.compiled

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 256)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
PARAMETERS = 4 * (256 * 512 + 512 + 512 * 2 + 2)
STATE = 3 * PARAMETERS  # with Adam's moments
DATA = X.nbytes


def live():
    return sum(array.nbytes for array in jax.live_arrays())


class Copies:
    """What lives when a part of the training makes a copy, beyond what lived before."""

    def __init__(self, module, monkeypatch):
        self.before, self.seen = live(), []
        copy_arrays = module.copy_arrays

        def noted(tree):
            self.seen.append(live() - self.before)
            return copy_arrays(tree)

        monkeypatch.setattr(module, 'copy_arrays', noted)


@pytest.mark.parametrize('epochs', [1, 4])
def test_there_is_one_state_when_a_copy_of_it_is_made(epochs, monkeypatch):
    model = mlp(256, 2, hidden=512)
    copies = Copies(fit, monkeypatch)
    ModelTrainer(TrainingConfig(epochs=epochs, batch_size=16)).train(model, X, Y, progress=False)
    assert len(copies.seen) > epochs
    assert max(copies.seen) < STATE + DATA + PARAMETERS / 2


def test_without_going_back_there_is_one_state(monkeypatch):
    model, seen, before = mlp(256, 2, hidden=512), [], live()
    config = TrainingConfig(
        epochs=3, batch_size=16, on_nan='ignore', callbacks=[lambda run: seen.append(live())]
    )
    ModelTrainer(config).train(model, X, Y, progress=False)
    assert max(seen) - before < STATE + DATA + PARAMETERS / 2


def test_the_best_epoch_before_is_gone_when_a_better_one_is_kept(monkeypatch):
    model = mlp(256, 2, hidden=512)
    copies = Copies(early_stopping, monkeypatch)
    stopping = EarlyStopping(monitor='loss', patience=50)
    config = TrainingConfig(epochs=5, batch_size=16, callbacks=[stopping])
    ModelTrainer(config).train(model, X, Y, progress=False)
    assert len(copies.seen) > 2
    assert max(copies.seen) < 2 * STATE + DATA + PARAMETERS / 2


class Looked(nnx.Module):
    """A row of the table breaks when its id first comes; no loss ever sees it before."""

    def __init__(self):
        self.table = nnx.Embed(64, 2048, rngs=nnx.Rngs(0))
        self.table.embedding[...] = self.table.embedding[...].at[7].set(0.0)
        self.out = nnx.Linear(1, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.out(jnp.sqrt(jnp.sum(self.table(x) ** 2, axis=1, keepdims=True)))


def test_going_back_takes_no_more_than_going_on(monkeypatch):
    ids = np.resize([1, 2, 3], 96)
    ids[50] = 7
    model, parameters = Looked(), 64 * 2048 * 4
    copies = Copies(divergence, monkeypatch)
    config = TrainingConfig(epochs=1, batch_size=8, steps_per_dispatch=16)
    with pytest.warns(ThinkMLWarning, match='the gradient is not finite'):
        ModelTrainer(config).train(model, ids, ids % 2, progress=False)
    assert len(copies.seen) > 2
    # The state before the chunk; what is computed again is made of the copy.
    assert max(copies.seen) < 3.5 * parameters


# --- what is done so that a training fits -----------------------------------------------------

RNG = np.random.default_rng(0)
DEEP_X = RNG.normal(size=(1024, 64)).astype(np.float32)
DEEP_Y = np.arange(1024) % 3


def deep():
    return Deep(num_layers=10)


def with_free(monkeypatch, num_bytes):
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda layout: num_bytes)


def deep_plan(loss_fn=None, **settings):
    config = TrainingConfig(**{'batch_size': 512, 'epochs': 1, 'optimizer': 'sgd'} | settings)
    model = deep()
    setup = make_setup(model, TrainRequest(DEEP_X, DEEP_Y, loss_fn=loss_fn), config)
    return memory_plan.make_plan(model, setup, config, ONE_DEVICE)


def train_deep(model=None, **settings):
    config = TrainingConfig(
        **{'batch_size': 512, 'epochs': 2, 'learning_rate': 1e-2, 'optimizer': 'sgd'} | settings
    )
    trainer = ModelTrainer(config)
    return trainer.train(model or deep(), DEEP_X, DEEP_Y, progress=False)


@pytest.fixture(scope='module')
def needed():
    """Bytes of the deep net's training as it is, and with activations computed again."""
    return [deep_plan(remat=remat).bytes_per_device for remat in (False, True)]


@pytest.fixture(scope='module')
def as_it_is():
    """The history of the deep net's training where nothing is done."""
    return train_deep()


def test_where_all_fits_by_far_nothing_is_compiled(monkeypatch):
    with_free(monkeypatch, 10**9)
    monkeypatch.setattr(memory_plan, '_plans', lambda *args: pytest.fail('it was planned'))
    history = train_deep()
    assert history.events == []


def test_where_nobody_knows_nothing_is_done(monkeypatch):
    with_free(monkeypatch, None)
    monkeypatch.setattr(memory_plan, '_plans', lambda *args: pytest.fail('it was planned'))
    assert train_deep().events == []


def test_where_it_just_fits_nothing_is_done(monkeypatch, needed):
    with_free(monkeypatch, needed[0])
    assert train_deep().events == []


def test_rematerialisation_comes_first_and_changes_no_number(monkeypatch, needed, as_it_is):
    with_free(monkeypatch, needed[0] - 1)
    with pytest.warns(
        ThinkMLWarning, match=r'memory: activations are computed again .*free'
    ) as told:
        history = train_deep()
    assert 'parts' not in str(told[0].message)
    assert [text for _, text in history.events] == [str(told[0].message).removeprefix('memory: ')]
    np.testing.assert_allclose(history.step_loss, as_it_is.step_loss, rtol=1e-6)


def test_parts_of_batches_come_next(monkeypatch, needed, as_it_is):
    with_free(monkeypatch, needed[1] - 1)
    with pytest.warns(ThinkMLWarning, match=r'computed again .* and each batch is computed in \d+'):
        history = train_deep()
    assert history.steps == as_it_is.steps
    np.testing.assert_allclose(history.step_loss, as_it_is.step_loss, rtol=1e-5)


def test_remat_false_leaves_the_parts(monkeypatch, needed):
    with_free(monkeypatch, needed[0] - 1)
    with pytest.warns(ThinkMLWarning, match='memory: each batch is computed in 2 parts') as told:
        train_deep(remat=False)
    assert 'BatchNorm sees one part at a time' in str(told[0].message)


def test_what_fits_in_no_way_is_said_with_the_plan_and_tried(monkeypatch, as_it_is):
    with_free(monkeypatch, 10_000)
    with pytest.warns(ThinkMLWarning, match=r'may not fit(.|\n)*10.0 kB are free'):
        history = train_deep()
    np.testing.assert_allclose(history.step_loss, as_it_is.step_loss, rtol=1e-5)
    assert 'may not fit' in history.events[0][1]


def test_parts_are_never_of_a_few_rows(monkeypatch):
    prime = {'batch_size': 509}
    with_free(monkeypatch, deep_plan(remat=True, **prime).bytes_per_device - 1)
    found = deep_plan(**prime)
    assert (found.fits, found.saving) == (False, (True, 1, 0))


class Words(nnx.Module):
    """Returns the logits of many words for each token."""

    def __init__(self, num_words=4096):
        rngs = nnx.Rngs(0)
        self.embed, self.out = nnx.Embed(64, 8, rngs=rngs), nnx.Linear(8, num_words, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.embed(x)))


TOKENS = RNG.integers(0, 64, (64, 32))
WORDS = RNG.integers(0, 4096, (64, 32))
WORDS[0, 0] = 4095


def words_plan(**arguments):
    config = TrainingConfig(batch_size=64, epochs=1, optimizer='sgd')
    setup = make_setup(Words(), TrainRequest(TOKENS, WORDS, **arguments), config)
    return memory_plan.make_plan(Words(), setup, config, ONE_DEVICE)


def train_words(tmp_path=None, epochs=3, **settings):
    if tmp_path is not None:
        settings |= {'callbacks': ['checkpoint'], 'checkpoint_dir': tmp_path}
    config = TrainingConfig(
        batch_size=64, epochs=epochs, learning_rate=0.5, optimizer='sgd', **settings
    )
    trainer = ModelTrainer(config)
    return trainer.train(
        Words(), TOKENS, WORDS, TOKENS, WORDS, progress=False, resume=tmp_path is not None
    )


def test_the_logits_of_many_words_are_computed_in_chunks_before_anything_else(
    monkeypatch, tmp_path
):
    expected, needed = train_words(), words_plan()
    assert needed.saving.chunk == 0
    with_free(monkeypatch, needed.bytes_per_device // 2)
    found = words_plan()
    assert found.fits and found.saving == (False, 1, 256)
    assert 'the logits of 256 rows or elements are computed at a time.' in str(found)
    with pytest.warns(ThinkMLWarning, match='memory: the logits of 256'):
        history = train_words(tmp_path, epochs=2)
    with_free(monkeypatch, 10**12)
    history = train_words(tmp_path)  # resumed, in chunks as well
    for name in ('loss', 'val_loss', 'accuracy'):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-5)
    # A metric of all logits, and another loss.
    with_free(monkeypatch, needed.bytes_per_device // 2)
    assert words_plan(metrics=['exact_match']).saving.chunk == 0
    assert words_plan(loss_fn='focal').saving.chunk == 0


def test_a_coupled_objective_is_not_computed_in_parts(monkeypatch):
    def coupled(model, batch, key):
        return jnp.square(model(batch.x)).mean()

    def per_row(model, batch, key):
        return jnp.square(model(batch.x)).mean(axis=1)

    needed = deep_plan(Objective(coupled, coupled=True), remat=False)
    with_free(monkeypatch, needed.bytes_per_device - 1)
    found = deep_plan(Objective(coupled, coupled=True), remat=False)
    assert (found.fits, found.saving.micro_batches) == (False, 1)
    assert deep_plan(Objective(per_row), remat=False).saving.micro_batches == 2


def test_a_plan_says_what_is_done(monkeypatch, needed):
    with_free(monkeypatch, needed[1] - 1)
    found = deep_plan()
    assert found.fits and found.saving.remat and found.saving.micro_batches > 1
    assert found.to_dict()['remat'] is True
    assert f'each batch is computed in {found.saving.micro_batches} parts.' in str(found)
    assert max(map(len, str(found).splitlines())) <= 100


def test_a_run_that_goes_on_does_what_it_did(monkeypatch, needed, tmp_path):
    settings = {'callbacks': ['checkpoint'], 'checkpoint_dir': tmp_path}
    with_free(monkeypatch, needed[1] - 1)
    with pytest.warns(ThinkMLWarning, match='memory: '):
        whole = train_deep(epochs=4, callbacks=())
    with pytest.warns(ThinkMLWarning, match='memory: '):
        train_deep(epochs=2, **settings)
    with_free(monkeypatch, 10**12)
    model = deep()
    trainer = ModelTrainer(
        TrainingConfig(batch_size=512, epochs=4, learning_rate=1e-2, optimizer='sgd', **settings)
    )
    history = trainer.train(model, DEEP_X, DEEP_Y, resume=True, progress=False)
    np.testing.assert_array_equal(history.step_loss, whole.step_loss)
    assert [text for _, text in history.events][:1] == [text for _, text in whole.events]


def test_dropout_and_batch_norm_with_remat():
    x = RNG.normal(size=(96, 4)).astype(np.float32)
    models = [DropoutBatchNorm(4, 3, nnx.Rngs(0)) for _ in range(2)]
    losses = []
    for model, remat in zip(models, (None, True), strict=True):
        config = TrainingConfig(epochs=3, batch_size=32, optimizer='sgd', remat=remat)
        losses.append(ModelTrainer(config).train(model, x, np.arange(96) % 3, progress=False))
    np.testing.assert_allclose(losses[0].step_loss, losses[1].step_loss, rtol=1e-6)
    for name in ('mean', 'var'):
        one, other = (getattr(model.norm, name)[...] for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_what_is_on_the_device_already_takes_no_further_room():
    found = []
    for rows in (DEEP_X, jnp.asarray(DEEP_X)):
        config = TrainingConfig(batch_size=64, device_data_bytes=DEEP_X.nbytes // 2)
        setup = make_setup(deep(), TrainRequest(rows, DEEP_Y), config)
        found += [
            where.name for _, where, *_ in memory_plan.planned_placements(setup, config, ONE_DEVICE)
        ]
    assert found == ['HOST', 'REPLICATED']


def test_a_larger_batch_is_found_with_rematerialisation(monkeypatch):
    monkeypatch.setattr('thinkml.training.tuning.device_budget', lambda layout: 2_000_000)
    sizes = [
        ModelTrainer(TrainingConfig(optimizer='sgd', remat=remat)).find_batch_size(
            deep(), DEEP_X, DEEP_Y
        )
        for remat in (False, True)
    ]
    assert 1 < sizes[0] < sizes[1] < 1024


def test_a_rate_is_found_with_rematerialisation_where_it_is_needed(monkeypatch, needed):
    finder = ModelTrainer(TrainingConfig(batch_size=512, optimizer='sgd'))
    expected = finder.find_learning_rate(deep(), DEEP_X, DEEP_Y)
    savings, look_for = [], trainer.learning_rate_range

    def noted(*args):
        savings.append(args[-1])
        return look_for(*args)

    monkeypatch.setattr(trainer, 'learning_rate_range', noted)
    with_free(monkeypatch, needed[1])
    found = finder.find_learning_rate(deep(), DEEP_X, DEEP_Y)
    assert [saving.remat for saving in savings] == [True]
    np.testing.assert_allclose(found.losses[:50], expected.losses[:50], rtol=1e-4)


def test_rows_that_will_come_are_planned_for():
    """Active learning's training set grows up to the pool, and so does its batch."""
    config = TrainingConfig(batch_size=512, epochs=1, optimizer='sgd')
    model = deep()
    few = make_setup(model, TrainRequest(DEEP_X, DEEP_Y, rows=np.arange(8)), config)
    planned = memory_plan.make_plan(model, few, config, ONE_DEVICE)
    assert planned.bytes_per_device == deep_plan().bytes_per_device


# --- what the compiler is asked ---------------------------------------------------------------


def planned(model, setup, config, layout):
    return list(memory_plan._plans(model, setup, config, layout))


@pytest.mark.parametrize('ask', [planned, tuning.largest_batch_size])
def test_the_program_whose_memory_is_asked_for_computes_as_the_one_that_runs(ask, monkeypatch):
    images, labels = np.ones((32, 8, 8, 1), np.float32), np.arange(32) % 3
    model, config = SmallCNN(nnx.Rngs(0)), TrainingConfig(batch_size=32)
    setup = make_setup(model, TrainRequest(images, labels), config)
    programs, memory_of = [], jax.stages.Compiled.memory_analysis
    monkeypatch.setattr(tuning, 'device_budget', lambda layout: 10**9)
    monkeypatch.setattr(
        jax.stages.Compiled, 'memory_analysis',
        lambda program: programs.append(program) or memory_of(program),
    )  # fmt: skip
    ask(model, setup, config, ONE_DEVICE)

    parts = make_parts(model, setup, config)
    step, metrics = parts.program.train_step, parts.program.metrics
    block = next(iter(parts.feed.blocks(0, 0)))
    carry = parts.state, empty_metrics(metrics)
    run = _run_steps.lower(step, True, ONE_DEVICE, block.data, block.plan, carry, 0, 1).compile()
    # What YNNPACK computes; one convolution more of it without the options.
    asked, ran = (program.as_text().count('__ynn_fusion') for program in (programs[-1], run))
    assert asked == ran
