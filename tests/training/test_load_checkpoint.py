"""Loading the weights of checkpoints into models, and continuing runs that were stopped."""

import jax
import numpy as np
import pytest
from flax import linen, nnx

from tests.models_for_tests import DropoutBatchNorm, apply_mlp, init_mlp, mlp
from thinkml.errors import CheckpointError, ConfigError, ModelFileError
from thinkml.model_record import record_of
from thinkml.models import ModelManager, from_functions, from_linen, predict, predict_proba
from thinkml.training import (
    Checkpoint,
    EarlyStopping,
    ModelTrainer,
    TrainingConfig,
    TransferLearner,
    load_checkpoint,
)

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.array(['ant', 'bee', 'cat'])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)]


def net(seed=0):
    return DropoutBatchNorm(4, 3, nnx.Rngs(seed))


def train(model, directory, *callbacks, resume=False, keep=9, **settings):
    config = TrainingConfig(
        **{'epochs': 4, 'learning_rate': 0.05, 'checkpoint_dir': directory} | settings,
        callbacks=[Checkpoint(keep=keep), *callbacks],
    )
    return ModelTrainer(config).train(model, X, Y, X, Y, resume=resume, progress=False)


class Watches:
    """A callback that keeps the model's predictions after each epoch, by step."""

    def __init__(self):
        self.shares = {}

    def on_epoch_end(self, run):
        self.shares[run.step] = predict_proba(run.model, X)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    directory, watches, model = tmp_path_factory.mktemp('runs'), Watches(), net()
    history = train(model, directory, watches)
    return directory, watches.shares, model, history


@pytest.mark.parametrize('where', ['.', 'run-1'])
def test_the_weights_of_each_checkpoint_can_be_loaded(run, where):
    directory, shares, trained, history = run
    steps = sorted(shares)
    best = steps[int(np.argmin(history['val_loss']))]
    for which, step in [('best', best), ('latest', steps[-1]), *((step, step) for step in steps)]:
        model = net(seed=1)
        assert load_checkpoint(directory / where, model, which) is model
        np.testing.assert_array_equal(predict_proba(model, X), shares[step])
        record = record_of(model)
        assert record.task == record_of(trained).task
        assert record.input_spec == record_of(trained).input_spec
        assert record.runs[0].steps == step
    np.testing.assert_array_equal(predict(load_checkpoint(directory, net(1), 'latest'), X),
                                  predict(trained, X))  # fmt: skip


def test_one_checkpoint_is_a_path_too_and_a_loaded_model_can_be_saved(run, tmp_path):
    directory, shares, _, _ = run
    step = min(shares)
    model = load_checkpoint(str(directory / 'run-1' / str(step)), net(1))
    np.testing.assert_array_equal(predict_proba(model, X), shares[step])
    manager = ModelManager()
    manager.save_model(model, tmp_path / 'model')
    np.testing.assert_array_equal(
        predict(manager.load_model(tmp_path / 'model'), X), predict(model, X)
    )
    with pytest.raises(CheckpointError, match='is a saved model'):
        load_checkpoint(tmp_path / 'model', net())


@pytest.mark.parametrize('settings', [{'ema_decay': 0.5}, {'early_stopping': True}], ids=str)
def test_what_is_loaded_is_what_is_evaluated(settings, tmp_path):
    watches, trained = Watches(), net()
    history = train(trained, tmp_path, watches, **settings)
    model = load_checkpoint(tmp_path, net(1))
    best = sorted(watches.shares)[history.best_epoch - 1]
    np.testing.assert_array_equal(predict_proba(model, X), watches.shares[best])


def test_models_that_have_no_arrays_yet_are_filled(tmp_path):
    for index, make in enumerate(
        (lambda: from_linen(linen.Dense(3)), lambda: from_functions(init_mlp, apply_mlp))
    ):
        trained = make()
        train(trained, tmp_path / str(index))
        model = load_checkpoint(tmp_path / str(index), make(), 'latest')
        np.testing.assert_array_equal(predict_proba(model, X), predict_proba(trained, X))


@pytest.mark.parametrize('options', [{'fine_tune_layers': 1}, {'lora_rank': 2}], ids=str)
def test_checkpoints_of_partly_frozen_models_hold_all_of_it(options, tmp_path):
    base = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 8, rngs=nnx.Rngs(1))
    )
    config = TrainingConfig(epochs=2, callbacks=['checkpoint'], checkpoint_dir=tmp_path)
    learner = TransferLearner(base, config=config, **options)
    head = nnx.Linear(8, 3, rngs=nnx.Rngs(2))
    trained = learner.fine_tune(head, X, Y, role='head', progress=False)
    model = nnx.clone(trained)
    nnx.update(model, jax.tree.map(np.zeros_like, nnx.state(trained, nnx.Param)))
    load_checkpoint(tmp_path, model, 'latest')
    np.testing.assert_allclose(predict_proba(model, X), predict_proba(trained, X), atol=1e-6)


def test_what_can_not_be_loaded_is_told(run, tmp_path):
    directory, *_ = run
    with pytest.raises(CheckpointError, match='path: there are no checkpoints in'):
        load_checkpoint(tmp_path, net())
    with pytest.raises(ConfigError, match="which: got 'newest'"):
        load_checkpoint(directory, net(), 'newest')
    with pytest.raises(CheckpointError, match="which: got 1, expected 'best', 'latest' or one of"):
        load_checkpoint(directory, net(), 1)
    model = mlp(4, 3)
    before = model.layers[0].kernel[...]
    with pytest.raises(CheckpointError, match=r'hidden/bias: float32\[16\] in the'):
        load_checkpoint(directory, model)
    assert model.layers[0].kernel[...] is before


@pytest.mark.parametrize('where', ['', 'run-1', 'run-1/{step}'])
def test_load_model_of_a_checkpoint_names_the_way(run, where):
    directory, shares, _, _ = run
    path = directory / where.format(step=min(shares))
    with pytest.raises(ModelFileError, match=r'load_checkpoint\('):
        ModelManager().load_model(path)


def test_a_checkpoint_in_a_place_that_can_only_be_read(run, tmp_path, monkeypatch):
    directory, *_ = run
    before = sorted(path.name for path in directory.rglob('*'))
    monkeypatch.setattr('thinkml.checkpoint.filesystem.open_directory', None)
    load_checkpoint(directory, net(1))
    assert sorted(path.name for path in directory.rglob('*')) == before


# --- continuing -----------------------------------------------------------------------------------


def stops(run):
    if run.epoch == 2:
        run.stop('enough')


def test_a_run_that_was_stopped_is_continued_on_request(tmp_path, run):
    _, shares, *_ = run
    model, watches = net(), Watches()
    assert train(model, tmp_path, stops).epochs == 2
    assert train(net(), tmp_path, stops, resume=True).epochs == 2  # the run has ended
    history = train(net(), tmp_path, watches, resume='continue')
    assert history.epochs == 4 and sorted(watches.shares) == sorted(shares)[2:]
    for step, share in watches.shares.items():
        np.testing.assert_array_equal(share, shares[step])
    assert train(net(), tmp_path, resume='continue').epochs == 4  # no epochs are left


def test_early_stopping_waits_anew_and_a_kill_in_between_changes_nothing(tmp_path):
    settings = {
        'epochs': 9,
        'early_stopping': EarlyStopping('loss', patience=2, min_delta=1e9, restore_best=False),
    }
    ends = []
    for resume in (False, True, 'continue'):
        history = train(net(), tmp_path, resume=resume, **settings)
        ends.append(history.epochs)
    # The first epoch counts as an improvement.
    assert ends == [3, 3, 5]
    assert [epoch for epoch, text in history.events if 'early stopping' in text] == [3, 5]

    class Dies:
        def on_epoch_end(self, run):
            if run.epoch == 7:  # after the checkpoint of epoch 6
                raise RuntimeError('died')

    with pytest.raises(RuntimeError, match='died'):
        train(net(), tmp_path, Dies(), resume='continue', **settings)
    assert train(net(), tmp_path, resume=True, **settings).epochs == 7


def test_resume_takes_three_values(tmp_path):
    with pytest.raises(ConfigError, match="expected True, False or 'continue'"):
        train(net(), tmp_path, resume='go on')
