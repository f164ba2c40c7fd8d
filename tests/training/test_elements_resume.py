"""The guarantees of a run hold for tokens, pixels and sequences: resumed, streamed, loaded.

test_kill.py kills processes that train on them.
"""

import inspect
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from tests import models_for_tests
from thinkml.errors import ThinkMLWarning
from thinkml.model_record import record_of
from thinkml.models import ModelManager, predict
from thinkml.training import CTC, Checkpoint, ModelTrainer, TrainingConfig

pytestmark = pytest.mark.compiled

ROWS, TOKENS, SIDE = 40, 5, 6
RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 7, (ROWS, TOKENS))
TAGS = np.where(np.arange(TOKENS) < RNG.integers(1, TOKENS + 1, (ROWS, 1)), WORDS % 3, -100)
IMAGES = RNG.normal(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32)
MASKS = np.where(IMAGES[..., 0] > 1.5, 255, 4 * (IMAGES[..., 0] > 0))
SEQUENCES = [np.resize([1, 2], 1 + row.sum() % 4) for row in WORDS]
# Those that change with the place of a pixel or the number of ignored elements.
CASES = {
    'tokens': (
        (WORDS, TAGS), {'metrics': ['perplexity'], 'class_weights': {0: 2.0, 1: 1.0, 2: 1.0}},
    ),
    'pixels': (
        (IMAGES, MASKS),
        {
            'metrics': ['mean_iou'], 'loss_fn': 'dice', 'ignore_label': 255,
            'augmentation': ['flip', 'vertical_flip'],
        },
    ),
    'sequences': ((WORDS, SEQUENCES), {'metrics': ['exact_match'], 'loss_fn': CTC()}),
}  # fmt: skip


def network(case, module=models_for_tests):
    if case in ('tokens', 'sequences'):
        return module.TokenTagger(7, 3, nnx.Rngs(0))
    return module.PixelClassifier(2, nnx.Rngs(0))


def train(case, model, *, resume=False, **settings):
    data, arguments = CASES[case]
    config = TrainingConfig(
        **{'epochs': 3, 'batch_size': 4, 'learning_rate': 0.01, 'accumulate_steps': 2} | settings
    )
    return ModelTrainer(config).train(model, *data, resume=resume, progress=False, **arguments)


def outcome(case, **settings):
    """Returns all arrays of the model, the loss of each step and the history of a training."""
    model = network(case)
    history = train(case, model, **settings)
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    arrays = jax.device_get(nnx.to_pure_dict(state))
    return (arrays, history.step_loss, dict(history)), history.resumed_at


@pytest.fixture(scope='module')
def expected():
    return {case: outcome(case)[0] for case in CASES}


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize('case', CASES)
def test_a_run_that_crashed_within_an_epoch_resumes_with_the_same_bits(case, expected, tmp_path):
    class Crash:
        def on_chunk_end(self, run):
            if run.step >= 7:  # of 15; the last checkpoint is that of step 6, in epoch 2
                raise RuntimeError('crash')

    settings = {'checkpoint_dir': tmp_path, 'steps_per_dispatch': 1}
    checkpoint = Checkpoint(every_steps=3)
    with pytest.raises(RuntimeError, match='crash'):
        outcome(case, **settings, callbacks=[checkpoint, Crash()])
    found, resumed_at = outcome(case, **settings, callbacks=[checkpoint], resume=True)
    assert resumed_at == [6]
    assert_same(found, expected[case])


@pytest.mark.parametrize('case', CASES)
def test_streamed_rows_train_to_the_bits_of_resident_ones(case, expected):
    assert_same(outcome(case, device_data_bytes=1)[0], expected[case])


@pytest.mark.parametrize('case', CASES)
def test_a_model_loaded_without_its_class_predicts_the_same_labels(case, tmp_path, monkeypatch):
    (tmp_path / 'their_elements.py').write_text(inspect.getsource(models_for_tests))
    monkeypatch.syspath_prepend(tmp_path)
    import their_elements

    model = network(case, their_elements)
    train(case, model, epochs=1)
    path = ModelManager().save_model(model, tmp_path / 'model')
    (tmp_path / 'their_elements.py').unlink()
    monkeypatch.delitem(sys.modules, 'their_elements')
    with pytest.warns(ThinkMLWarning, match='stands in'):
        loaded = ModelManager().load_model(path)
    (x, y), _ = CASES[case]
    assert record_of(loaded).task == record_of(model).task
    for rows in (ROWS, 1):
        found = predict(loaded, x[:rows])
        for one, expected in zip(found, predict(model, x[:rows]), strict=True):
            np.testing.assert_array_equal(one, expected)
            assert np.isin(one, np.concatenate([np.ravel(row) for row in y])).all()
            assert case == 'sequences' or one.shape == y[0].shape
