"""A run that was stopped, however it was, and resumed ends as one that never stopped.

Here in one process; test_kill.py kills real ones.
"""

import csv
import gc
import itertools
import re
import resource
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, mlp
from thinkml.checkpoint import Checkpointer, manifest
from thinkml.core.train.dispatch import _run_steps
from thinkml.errors import CheckpointError, ConfigError, DataError, DivergedError, ThinkMLWarning
from thinkml.training import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    GaussianNoise,
    MixUp,
    ModelTrainer,
    TensorBoard,
    TrainingConfig,
)

pytestmark = pytest.mark.compiled

ROWS, STEPS = 96, 6  # rows of the data, steps of an epoch


def data(num_rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, num_rows)
    centres = rng.normal(size=(3, 4)) * 2
    return (centres[y] + rng.normal(size=(num_rows, 4))).astype(np.float32), y


X, Y = data()
X_VAL, Y_VAL = data(40, seed=1)


def network(seed=0):
    return DropoutBatchNorm(4, 3, nnx.Rngs(seed))


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    return leaf.dtype.name, leaf.shape, leaf.tobytes()


def leaves(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): bits(leaf) for path, leaf in paths}


class Watcher:
    """Keeps the state the run ended with, and crashes where it is told to."""

    def __init__(self, crash_at=None):
        self.crash_at = crash_at
        self.first_step = self.state = None

    def on_train_start(self, run):
        self.first_step = run.step

    def on_chunk_end(self, run):
        if self.crash_at is not None and run.step >= self.crash_at:
            raise RuntimeError('crash')

    def on_train_end(self, run):
        self.state = leaves(run.state)


class Outcome:
    """A run and all it left."""

    def __init__(self, history, model, watcher):
        self.history, self.watcher = history, watcher
        self.model = leaves(nnx.to_pure_dict(nnx.state(model)))

    def __eq__(self, other):
        return (
            self.history == other.history
            and self.model == other.model
            and self.watcher.state == other.watcher.state
        )


def run(
    directory,
    *,
    resume=False,
    crash_at=None,
    checkpoint=None,
    callbacks=(),
    model=None,
    arrays=None,
    arguments=None,
    **settings,
):
    """Trains with everything that has a state, and returns the `Outcome`."""
    watcher = Watcher(crash_at)
    checkpoint = {'every_steps': 4} if checkpoint is None else checkpoint
    config = TrainingConfig(**{
        'batch_size': 8, 'accumulate_steps': 2, 'epochs': 4, 'learning_rate': 0.01,
        'ema_decay': 0.9, 'early_stopping': EarlyStopping(patience=2), 'seed': 3,
        'lr_schedule': 'reduce_on_plateau', 'steps_per_dispatch': 5,
        'callbacks': [Checkpoint(directory, **checkpoint), *callbacks, watcher],
    } | settings)  # fmt: skip
    arguments = {
        'metrics': ['roc_auc'], 'class_weights': {0: 2.0}, 'augmentation': MixUp(0.2),
    } | (arguments or {})  # fmt: skip
    model = network() if model is None else model
    history = ModelTrainer(config).train(
        model, *(arrays or (X, Y, X_VAL, Y_VAL)), resume=resume, progress=False, **arguments
    )
    return Outcome(history, model, watcher)


def crashed(directory, at, **settings):
    with pytest.raises(RuntimeError, match='crash'):
        run(directory, crash_at=at, **settings)


def interrupted(directory, at, **settings):
    def interrupt(run):
        if run.step >= at:
            signal.raise_signal(signal.SIGINT)

    class Interrupt:
        on_chunk_end = staticmethod(interrupt)

    return run(directory, callbacks=[Interrupt()], **settings)


def at_scale(*values):
    """Parameters for the slow tests alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp('uninterrupted'))


@pytest.mark.parametrize('step', [1, 5, 6, 13, *at_scale(4, 7, 12, 24)])
def test_a_run_that_crashed_at_any_step_is_resumed_bit_for_bit(tmp_path, step, uninterrupted):
    crashed(tmp_path, step, steps_per_dispatch=1)
    resumed = run(tmp_path, resume=True)
    # The border it crashed at is not saved: that comes after the callbacks.
    last_saved = max((k for k in range(1, step) if k % 4 == 0 or k % STEPS == 0), default=0)
    assert resumed.watcher.first_step == last_saved
    assert resumed == uninterrupted
    assert len(filled(tmp_path)) == 1


def test_how_often_it_crashed_and_how_it_is_cut_and_placed_changes_nothing(tmp_path, uninterrupted):
    crashed(tmp_path, 9)
    crashed(tmp_path, 14, resume=True, steps_per_dispatch=2)
    crashed(tmp_path, 23, resume=True, device_data_bytes=1000)
    resumed = run(tmp_path, resume=True, steps_per_dispatch=3)
    assert resumed.watcher.first_step % STEPS > 0
    assert resumed == uninterrupted


def test_a_run_goes_on_with_activations_computed_again(tmp_path, uninterrupted):
    crashed(tmp_path, 9)
    resumed = run(tmp_path, resume=True, remat=True)
    assert resumed.watcher.first_step > 0
    np.testing.assert_allclose(resumed.history['loss'], uninterrupted.history['loss'], rtol=1e-4)


def test_what_is_saved_when_changes_nothing(tmp_path, uninterrupted):
    assert run(tmp_path, checkpoint={'every_epochs': 3}) == uninterrupted
    assert run(tmp_path, checkpoint={'every_minutes': 1e-9}) == uninterrupted


@pytest.mark.parametrize('step', [6, 9, *at_scale(1)])
def test_ctrl_c_saves_and_is_resumed_bit_for_bit(tmp_path, step, uninterrupted):
    stopped = interrupted(tmp_path, step, steps_per_dispatch=1)
    assert stopped.history.interrupted and stopped.history.steps == step
    assert stopped.history.events[-1][1] == 'interrupted'
    resumed = run(tmp_path, resume=True)
    assert resumed.watcher.first_step == step
    assert resumed == uninterrupted and not resumed.history.interrupted


@pytest.mark.parametrize('steps', [6, 9])
def test_max_steps_and_more_of_them(tmp_path, steps, uninterrupted):
    """The epoch they cut short is recorded, and goes on when the run is resumed."""
    first = run(tmp_path, max_steps=steps)
    assert first.history.steps == steps and first.history.epochs == -(-steps // STEPS)
    again = run(tmp_path, max_steps=steps, resume=True)
    assert again.watcher.first_step == steps
    assert again == first
    assert run(tmp_path, resume=True) == uninterrupted


def test_max_time_ends_a_run_that_is_resumed_bit_for_bit(tmp_path, uninterrupted):
    for _ in range(3):
        stopped = run(tmp_path, resume=True, max_time=1e-9, steps_per_dispatch=1)
        assert stopped.history.events[-1][1] == 'max_time is over'
    assert stopped.history.steps == 3 and not stopped.history.interrupted
    assert run(tmp_path, resume=True) == uninterrupted


def test_a_finished_run_has_nothing_left_to_train(tmp_path, uninterrupted, monkeypatch):
    finished = run(tmp_path, epochs=2)
    again = run(tmp_path, epochs=2, resume=True)
    assert again.watcher.first_step == 2 * STEPS
    assert again == finished
    assert run(tmp_path, resume=True) == uninterrupted


def test_a_run_that_stopped_early_stays_stopped_with_its_best_parameters(tmp_path):
    settings = {
        'early_stopping': EarlyStopping('val_roc_auc', patience=1), 'epochs': 50,
        'learning_rate': 0.1,
    }  # fmt: skip
    finished = run(tmp_path, **settings)
    assert finished.history.epochs < 50 and finished.history.best_epoch == (
        finished.history.epochs - 1
    )
    assert 'early stopping' in finished.history.events[-1][1]
    assert run(tmp_path, resume=True, **settings) == finished


def test_a_callback_that_stops_within_an_epoch(tmp_path):
    class Stop:
        def on_chunk_end(self, run):
            if run.step >= 9:
                run.stop('enough')

    finished = run(tmp_path, callbacks=[Stop()], steps_per_dispatch=1)
    assert finished.history.steps == 9 and finished.history.epochs == 2
    assert run(tmp_path, resume=True) == finished


@pytest.mark.parametrize('schedule', ['constant', 'reduce_on_plateau'])
def test_a_run_goes_on_for_more_epochs(tmp_path, schedule):
    whole = run(tmp_path / 'whole', lr_schedule=schedule)
    run(tmp_path / 'parts', lr_schedule=schedule, epochs=1)
    assert run(tmp_path / 'parts', lr_schedule=schedule, epochs=4, resume=True) == whole


@pytest.mark.slow
def test_a_schedule_over_the_whole_run_keeps_its_length(tmp_path):
    whole = run(tmp_path / 'whole', lr_schedule='cosine')
    crashed(tmp_path / 'parts', 9, lr_schedule='cosine')
    for change in ({'epochs': 5}, {'max_steps': 9}):
        says = f"{next(iter(change))}: .* in the checkpoint, .* now, which lr_schedule='cosine' dep"
        with pytest.raises(ConfigError, match=says):
            run(tmp_path / 'parts', lr_schedule='cosine', resume=True, **change)
    assert run(tmp_path / 'parts', lr_schedule='cosine', resume=True) == whole


@pytest.mark.slow
def test_a_rate_that_was_found_is_kept(tmp_path):
    whole = run(tmp_path / 'whole', learning_rate='auto', lr_schedule='constant')
    crashed(tmp_path / 'parts', 9, learning_rate='auto', lr_schedule='constant')
    resumed = run(tmp_path / 'parts', learning_rate='auto', lr_schedule='constant', resume=True)
    assert resumed == whole


class Batches:
    """A source that shuffles by the epoch's number, without a state of its own."""

    def __init__(self, size=8):
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(ROWS)
        for first in range(0, ROWS, self.size):
            rows = order[first : first + self.size]
            yield X[rows], Y[rows]


def grain_batches():
    import grain

    pairs = grain.MapDataset.range(ROWS).shuffle(seed=7).map(lambda i: (X[i], Y[i]))
    return pairs.to_iter_dataset().batch(8)


def of_batches(source):
    """The ranks of `roc_auc` need an epoch of known length."""
    return {'arrays': (source, None, X_VAL, Y_VAL), 'arguments': {'metrics': ['f1']}}


@pytest.mark.parametrize('source', [lambda: Batches(10), grain_batches])
def test_batches_go_on_where_they_were(tmp_path, source):
    whole = run(tmp_path / 'whole', **of_batches(source()))
    for step in (4, 15):
        crashed(tmp_path / 'parts', step, **of_batches(source()), resume=True)
    assert run(tmp_path / 'parts', resume=True, **of_batches(source())) == whole


def test_batches_that_end_too_early_are_other_data(tmp_path):
    crashed(tmp_path, 11, **of_batches(Batches()))

    class Fewer(Batches):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 3)

    with pytest.raises(DataError, match='the run to resume had reached batch'):
        run(tmp_path, resume=True, **of_batches(Fewer()))


def test_without_checkpoints_a_run_begins(tmp_path, uninterrupted):
    (tmp_path / 'run-1').mkdir()  # of a run that was killed before its first one
    assert run(tmp_path, resume=True) == uninterrupted
    (tmp_path / 'run-7').mkdir()
    again = run(tmp_path, resume=True)
    assert again.watcher.first_step == 4 * STEPS and again == uninterrupted
    assert contents(tmp_path).keys() == contents(tmp_path / 'run-1').keys()


@pytest.mark.parametrize('named_by', ['Checkpoint', 'checkpoint_dir'])
def test_the_directory_of_one_run_resumes_that_run(tmp_path, named_by):
    def train(directory, **settings):
        if named_by == 'checkpoint_dir':
            settings |= {'checkpoint_dir': directory}
            directory = None
        return run(directory, **settings)

    train(tmp_path, epochs=1)
    train(tmp_path, epochs=1, seed=4)
    resumed = train(str(tmp_path / 'run-1'), epochs=2, resume=True)
    assert resumed.watcher.first_step == STEPS and resumed.history.epochs == 2
    assert saved_steps(tmp_path)[-1] == 2 * STEPS
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run-1', 'run-2']
    with pytest.raises(ConfigError, match=r'^checkpoint_dir: .*run-1 is the directory of one run'):
        train(tmp_path / 'run-1')
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r'^checkpoint_dir: .*/12 is one checkpoint'):
            train(tmp_path / 'run-1' / '12', resume=resume)
    with pytest.raises(
        ConfigError, match=r'^checkpoint_dir: there is no run in .*run-9\. .*run-2,'
    ):
        train(tmp_path / 'run-9', resume=True)
    assert not [path for path in tmp_path.rglob('*') if '.thinkml' in path.name]


def test_runs_at_once_never_share_a_directory(tmp_path):
    class Meanwhile:
        """Trains in the same directory while a run is in progress."""

        def on_train_start(self, _):
            if not self.others:
                self.others.append('begun')
                run(tmp_path, epochs=1, seed=5, resume=True)  # nothing is saved: it begins

        def on_epoch_end(self, state):
            if state.epoch == 2:
                with pytest.raises(CheckpointError, match=r'^resume: the run in .* being trained'):
                    run(tmp_path / 'run-1', resume=True)

        others: list[str] = []  # noqa: RUF012

    both = run(tmp_path, epochs=2, callbacks=[Meanwhile()])
    assert both.history.epochs == 2 and saved_steps(tmp_path)[-1] == 2 * STEPS
    assert run(tmp_path, epochs=1, seed=5, resume=True).watcher.first_step == STEPS
    assert filled(tmp_path) == {'run-1', 'run-2'}


def test_resume_needs_checkpoints():
    trainer = ModelTrainer(TrainingConfig(epochs=1))
    with pytest.raises(ConfigError, match=r"^resume: got True .* callbacks=\['checkpoint'\]"):
        trainer.train(network(), X, Y, resume=True)


def test_runs_never_mix(tmp_path):
    run(tmp_path, epochs=1)
    first = contents(tmp_path / 'run-1')
    second = run(tmp_path, epochs=2, seed=4)
    assert contents(tmp_path / 'run-1') == first
    assert run(tmp_path, epochs=2, seed=4, resume=True) == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run-1', 'run-2']


def contents(directory):
    return {str(path): path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def filled(directory):
    """The runs that left something."""
    return {path.name for path in directory.iterdir() if contents(path)}


def saved_steps(directory):
    return Checkpointer(directory / 'run-1', keep=None).steps()


@pytest.mark.parametrize(
    ('checkpoint', 'steps'),
    [
        ({'keep': 100}, [6, 12, 18, 24]),
        ({'keep': 100, 'every_epochs': 2}, [12, 24]),
        ({'keep': 100, 'every_epochs': 3}, [18, 24]),
        ({'keep': 100, 'every_epochs': 4, 'every_steps': 7}, [7, 14, 21, 24]),
        ({'keep': 100, 'every_epochs': 9, 'every_minutes': 1e-9}, [5, 6, 11, 12, 17, 18, 23, 24]),
        ({'keep': 3, 'every_steps': 5}, [18, 20, 24]),
    ],
)
def test_when_checkpoints_are_due(tmp_path, checkpoint, steps):
    # Its best epoch is the last: the newest ones are all there is.
    run(tmp_path, checkpoint=checkpoint | {'monitor': 'loss'}, early_stopping=False)
    assert saved_steps(tmp_path) == steps


def test_the_best_one_stays(tmp_path):
    def judge(run):
        run.history.add_to_epoch({'loss': [3.0, 1.0, 4.0, 2.0, 9.0, 1.0][run.epoch - 1]})

    checkpoint = {'keep': 1, 'monitor': 'loss'}
    settings = {'checkpoint': checkpoint, 'callbacks': [judge], 'early_stopping': False}
    run(tmp_path, epochs=3, **settings)
    assert saved_steps(tmp_path) == [12, 18]
    run(tmp_path, epochs=5, resume=True, **settings)  # what was the best is known
    assert saved_steps(tmp_path) == [12, 30]
    checkpointer = Checkpointer(tmp_path / 'run-1', keep=None)
    assert checkpointer.best_step() == 12
    assert checkpointer.metadata(30)['best_epoch'] == 2
    run(tmp_path, epochs=6, resume=True, **settings)  # no better: the earlier one stays
    assert saved_steps(tmp_path) == [12, 36]


class Remembers:
    """A callback with every kind of value a state may have."""

    def __init__(self):
        self.state = {
            'count': 0, 'share': 1 / 3, 'flag': False, 'none': None, 'numpy': np.arange(3) / 3,
            'scalar': np.float32(0.1), 'jax': jnp.zeros(2, jnp.bfloat16), 'key': jax.random.key(1),
            'large': np.array([2**40]), 'pair': (1, [2.5]), 'empty': np.zeros((0, 2)),
        }  # fmt: skip

    def on_chunk_end(self, run):
        state = self.state
        state['count'] += 1
        state['share'] = state['share'] * 1.1
        state['flag'] = not state['flag']
        state['numpy'] = state['numpy'] + run.history.step_loss[-1]
        state['scalar'] = np.float32(state['scalar'] * 1.1)
        state['jax'] = state['jax'] + 1
        state['key'] = jax.random.split(state['key'])[0]
        state['pair'] = (3 * state['pair'][0] % 2**40, [state['pair'][1][0] / 3])

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = state


def test_a_callback_of_ones_own_is_resumed(tmp_path):
    whole, first, second = Remembers(), Remembers(), Remembers()
    run(tmp_path / 'whole', callbacks=[whole], steps_per_dispatch=1)
    crashed(tmp_path / 'parts', 9, callbacks=[first], steps_per_dispatch=1)
    run(tmp_path / 'parts', callbacks=[second], steps_per_dispatch=1, resume=True)
    assert leaves(second.state) == leaves(whole.state)
    types = {name: type(value) for name, value in whole.state.items()}
    assert {name: type(value) for name, value in second.state.items()} == types


class OneMore(Remembers):
    def __init__(self):
        super().__init__()
        self.state['more'] = 1


class Text(Remembers):
    def __init__(self):
        super().__init__()
        self.state['name'] = 'text'


def test_callbacks_whose_state_does_not_fit_are_told_before_any_compile(tmp_path, count_compiles):
    crashed(tmp_path, 9, callbacks=[Remembers()])
    OneMore.__name__ = 'Remembers'
    model = network(seed=5)
    before = leaves(nnx.to_pure_dict(nnx.state(model)))

    def resume(callbacks, says):
        with pytest.raises(ConfigError, match=says):
            run(tmp_path, resume=True, model=model, callbacks=callbacks)

    resume([], r'callbacks: those with a state are EarlyStopping, ReduceLROnPlateau, Remembers in '
               'the checkpoint, EarlyStopping, ReduceLROnPlateau now')  # fmt: skip
    resume([Remembers(), Remembers()], 'Remembers, Remembers 2 now')
    resume([OneMore()], r'the state_dict\(\) of Remembers has 12 values, expected 11')
    with pytest.raises(ConfigError, match=r'state_dict\(\) of Text holds a str, expected arrays'):
        run(tmp_path / 'other', callbacks=[Text()], model=model)
    assert leaves(nnx.to_pure_dict(nnx.state(model))) == before


def double(key, x, y):
    return x * 2, y


class WithoutRepr:
    def __call__(self, key, x, y):
        return x + 0.1 * jax.random.normal(key, x.shape), y


AUGMENTATIONS = {
    'none': lambda: None,
    'ours': lambda: GaussianNoise(0.1),
    'function': lambda: double,
    'lambda': lambda: lambda key, x, y: (x / 2, y),
    'object': WithoutRepr,
    'list': lambda: [double, GaussianNoise(0.1)],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_every_kind_of_augmentation_is_resumed(tmp_path, name):
    def arguments():  # made anew, as in a new process
        return {'arguments': {'augmentation': AUGMENTATIONS[name]()}, 'epochs': 2}

    whole = run(tmp_path / 'whole', **arguments())
    crashed(tmp_path / 'parts', 9, **arguments())
    assert run(tmp_path / 'parts', resume=True, **arguments()) == whole


OTHER = {
    'values': ({'arrays': (X + 1, Y, X_VAL, Y_VAL)}, [r"data\.sha256: '.*' in the .* values"]),
    'labels': ({'arrays': (X, (Y + 1) % 3, X_VAL, Y_VAL)}, [r"data\.sha256: '.*' in the"]),
    'rows': ({'arrays': (X[:-8], Y[:-8], X_VAL, Y_VAL)}, [r'data\.rows: 96 in the .*, 88 now']),
    'validation data': (
        {'arrays': (X, Y, X_VAL + 1, Y_VAL)}, [r"validation\.sha256: '.*' in the .* values"]
    ),
    'no validation': (
        {'arrays': (X, Y, None, None)}, [r'validation\.rows: \d+ in the checkpoint, None now']
    ),
    'weights': ({'arguments': {'class_weights': None}}, ["class_weights: '{0: 2.0}' .*, None now"]),
    'seed': ({'seed': 4}, ['seed: 3 in the checkpoint, 4 now']),
    'several': (
        {'learning_rate': 0.02, 'batch_size': 4, 'optimizer': 'sgd', 'seed': 4},
        ['learning_rate: 0.01 .* 0.02', 'batch_size: 8 .* 4 now', "optimizer: 'adam' .* 'sgd'"],
    ),
    'optimizer': (
        {'optimizer': optax.adamax}, ["optimizer: 'adam' in the checkpoint, 'adamax' now"]
    ),
    'metrics': (
        {'arguments': {'metrics': []}},
        [r"metrics: \['accuracy', 'roc_auc'\] in the .*, \['accuracy'\] now"],
    ),
    'loss': ({'arguments': {'loss_fn': 'focal', 'augmentation': None}},
             ["loss_fn: 'cross_entropy' .* 'focal'", r"augmentation: 'MixUp\(.*' .* None"]),
    'metrics of a logger': (
        {'callbacks': [CSVLogger('unused.csv')]}, [r"metrics: .*, \['accuracy', 'roc_auc', 'grad"]
    ),
    'patience': ({'early_stopping': False}, ['early_stopping: .*patience=2.* False now']),
}  # fmt: skip


@pytest.fixture(scope='module')
def crashed_after_nine_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp('crashed')
    crashed(directory, 9)
    return directory


@pytest.mark.parametrize('name', OTHER)
def test_another_run_is_told_what_differs_before_any_compile(
    crashed_after_nine_steps, name, count_compiles
):
    settings, says = OTHER[name]
    directory = crashed_after_nine_steps
    before_on_disk = contents(directory)
    model = network(seed=5)
    before = leaves(nnx.to_pure_dict(nnx.state(model)))

    def resume():
        with pytest.raises(
            ConfigError, match=r'^resume: the run in .*run-1 is another one'
        ) as error:
            run(directory, resume=True, model=model, **settings)
        for line in says:
            assert re.search(f'^  - {line}', str(error.value), re.MULTILINE), error.value

    resume()  # what was not traced on shapes before may compile a helper
    assert count_compiles(resume) == 0
    assert leaves(nnx.to_pure_dict(nnx.state(model))) == before
    assert contents(directory) == before_on_disk


def test_other_groups_hold_out_other_rows(tmp_path):
    groups = np.arange(len(X)) // 4
    settings = {'arrays': (X, Y), 'validation_split': 0.25}
    crashed(tmp_path, 6, **settings, arguments={'groups': groups})
    with pytest.raises(ConfigError, match=r'validation\.sha256: .* now: other values'):
        run(tmp_path, resume=True, **settings, arguments={'groups': (groups + 1) // 2})


def test_a_resumed_run_compiles_the_step_no_other_way(tmp_path, uninterrupted, monkeypatch):
    crashed(tmp_path, 9)
    monkeypatch.setattr(_run_steps, 'lower', None)
    assert run(tmp_path, resume=True) == uninterrupted


def test_another_shape_of_the_model_is_told(crashed_after_nine_steps):
    model = mlp(4, 3)
    before = leaves(nnx.to_pure_dict(nnx.state(model)))
    with pytest.raises(CheckpointError) as error:
        run(crashed_after_nine_steps, resume=True, model=model)
    assert str(error.value).startswith('resume: step 8 in ')
    assert 'does not fit this model and optimizer' in str(error.value)
    assert 'state/params/hidden/kernel: only in the checkpoint' in str(error.value)
    assert leaves(nnx.to_pure_dict(nnx.state(model))) == before


def damage_bits(checkpoint):
    files = [path for path in sorted(checkpoint.rglob('*')) if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_by_truncation(checkpoint):
    path = checkpoint / 'metadata.json'
    path.write_bytes(path.read_bytes()[:-9])


def damage_by_loss(checkpoint):
    (checkpoint / 'index.json').unlink()


@pytest.mark.parametrize('damage', [damage_bits, damage_by_truncation, damage_by_loss])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, damage, uninterrupted):
    crashed(tmp_path, 14)
    assert saved_steps(tmp_path) == [8, 12]
    damage(tmp_path / 'run-1' / '12')
    with pytest.warns(ThinkMLWarning, match=r'damaged checkpoints; step 8 is used') as caught:
        resumed = run(tmp_path, resume=True)
    assert len(caught) == 1 and 'step 12: ' in str(caught[0].message)
    assert resumed.watcher.first_step == 8
    assert resumed == uninterrupted


def test_no_sound_checkpoint_is_an_error(tmp_path):
    crashed(tmp_path, 14)
    for step in (8, 12):
        damage_bits(tmp_path / 'run-1' / str(step))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match='has no checkpoint that is not damaged') as error:
        run(tmp_path, resume=True)
    assert 'step 8: ' in str(error.value) and 'step 12: ' in str(error.value)
    assert contents(tmp_path) == before


def test_a_place_that_can_not_be_written_is_told_before_any_compile(tmp_path, count_compiles):
    (tmp_path / 'file').write_text('')
    model = network()

    def start():
        for place in (tmp_path / 'file', tmp_path / 'file' / 'below', '/proc/thinkml'):
            with pytest.raises(CheckpointError, match=r'^directory: '):
                run(place, model=model)

    assert count_compiles(start) == 0


def test_a_disk_without_room_is_told_before_the_first_step(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=100))
    with pytest.raises(CheckpointError, match=r'needs .* 100 bytes are free'):
        run(tmp_path)


# Orbax leaves the tasks behind whose writes were refused.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_disk_that_is_full_for_a_while_costs_checkpoints_but_no_training(tmp_path, uninterrupted):
    """The file system refuses files above a size during the second epoch, as a full one does."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk:
        def on_chunk_end(self, run):
            is_full = STEPS <= run.step < 2 * STEPS
            limit = (0, unlimited[1]) if is_full else unlimited
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    try:
        with pytest.warns(ThinkMLWarning, match='The training continues') as caught:
            finished = run(
                tmp_path, callbacks=[FullDisk()], checkpoint={'keep': 100, 'every_steps': 1},
                steps_per_dispatch=1,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        gc.collect()
    assert finished == uninterrupted
    failed = {int(re.match('step: (.*?) could not', str(w.message))[1]) for w in caught}
    saved = set(saved_steps(tmp_path))
    # The disk is full from one moment to another, and what is written then lies a step behind.
    assert saved >= {*range(1, STEPS - 1), *range(2 * STEPS, 4 * STEPS + 1)}
    # Each failure is told, and none takes the checkpoint after it along.
    assert len(failed) == len(caught) > 0
    assert saved | failed == {*range(1, 4 * STEPS + 1)} and not saved & failed


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_directory_that_vanishes_costs_no_training(tmp_path, uninterrupted):

    class Vanish:
        def on_chunk_end(self, run):
            if run.step == 2 * STEPS:
                while any((tmp_path / 'run-1').glob('.*')):  # what is being saved
                    time.sleep(0.01)
                (tmp_path / 'run-1').rename(tmp_path / 'moved')
                (tmp_path / 'run-1').write_text('')

    with pytest.warns(ThinkMLWarning, match='The training continues'):
        finished = run(tmp_path, callbacks=[Vanish()], steps_per_dispatch=3)
    gc.collect()
    assert finished == uninterrupted


def test_a_best_one_that_could_not_be_written_is_not_the_best(tmp_path, monkeypatch):
    def judge(run):
        run.history.add_to_epoch({'loss': [3.0, 1.0, 2.0, 4.0][run.epoch - 1]})

    write = manifest.write

    def refuse_step_12(directory, **about):
        if about['step'] == 12:
            raise OSError('refused')
        write(directory, **about)

    monkeypatch.setattr(manifest, 'write', refuse_step_12)
    with pytest.warns(ThinkMLWarning, match='step: 12 could not be written'):
        run(
            tmp_path, checkpoint={'keep': 1, 'monitor': 'loss'}, callbacks=[judge],
            early_stopping=False,
        )  # fmt: skip
    assert saved_steps(tmp_path) == [18, 24]


def test_a_diverged_run_keeps_its_last_sound_checkpoint(tmp_path):
    """Resumed, it diverges where it did before, and says so again."""
    settings = {
        'arrays': (X * 1e4, X[:, 0] * 1e6), 'model': mlp(4, 1), 'early_stopping': False,
        'optimizer': 'sgd', 'learning_rate': 1e-6, 'lr_schedule': 'constant', 'epochs': 20,
        'checkpoint': {'every_steps': 1}, 'steps_per_dispatch': 1,
        'arguments': {'metrics': [], 'class_weights': None, 'augmentation': None},
    }  # fmt: skip
    with pytest.warns(ThinkMLWarning, match='training has diverged'):
        first = run(tmp_path, **settings)
    assert saved_steps(tmp_path)[-1] == first.history.steps - 1
    with pytest.warns(ThinkMLWarning, match='training has diverged'):
        again = run(tmp_path, resume=True, **settings | {'model': mlp(4, 1)})
    assert again.watcher.first_step == first.history.steps - 1
    assert again == first
    model = mlp(4, 1)
    with pytest.raises(DivergedError, match='training has diverged'):
        run(tmp_path, resume=True, **settings | {'model': model, 'on_nan': 'raise'})
    assert leaves(nnx.to_pure_dict(nnx.state(model))) == first.model


def table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def points(directory):
    """The curves TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = {}
    for name in ('train', 'validation'):
        (path,) = directory.glob(f'run-*/{name}')
        accumulator = EventAccumulator(str(path)).Reload()
        for tag in accumulator.Tags()['scalars']:
            if not tag.startswith('results/'):
                shown[name, tag] = [(e.step, e.value) for e in accumulator.Scalars(tag)]
    return shown


@pytest.mark.parametrize('stop', [crashed, *at_scale(interrupted, None)])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of tensorboard
def test_tables_and_curves_go_on(tmp_path, stop):
    def loggers(name):
        return [CSVLogger(tmp_path / name / 'run.csv'), TensorBoard(tmp_path / name / 'logs')]

    settings = {'steps_per_dispatch': 1}
    run(tmp_path / 'a', **settings | {'callbacks': loggers('whole')})
    if stop is crashed:
        crashed(tmp_path / 'b', 15, callbacks=loggers('parts'), **settings)
    elif stop is interrupted:
        with_loggers = [*loggers('parts'), Interrupts(15)]
        run(tmp_path / 'b', callbacks=with_loggers, **settings)
    else:
        run(tmp_path / 'b', max_steps=15, callbacks=loggers('parts'), **settings)
    run(tmp_path / 'b', resume=True, callbacks=loggers('parts'), **settings)
    assert table(tmp_path / 'parts/run.csv') == table(tmp_path / 'whole/run.csv')
    assert points(tmp_path / 'parts/logs') == points(tmp_path / 'whole/logs')


class Interrupts:
    def __init__(self, step):
        self.step = step

    def on_chunk_end(self, run):
        if run.step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_seconds_are_those_of_all_parts(tmp_path):
    crashed(tmp_path, 14)
    checkpointer = Checkpointer(tmp_path / 'run-1')
    before = checkpointer.metadata(12)['history']['seconds']
    assert before > 0
    assert run(tmp_path, resume=True).history.seconds > before


def test_a_training_that_never_began_is_no_run_to_go_on_with(tmp_path):
    run(tmp_path, epochs=1)
    (tmp_path / 'run-2').mkdir()  # a training that failed before its first checkpoint left it
    resumed = run(tmp_path, resume=True, epochs=1)
    assert resumed.watcher.first_step == STEPS
    assert not list((tmp_path / 'run-2').iterdir())
