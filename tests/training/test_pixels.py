"""Pictures whose values or axes are others than those a model was trained on."""

import json

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import DataError, ModelTypeError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import ArraySpec, InputSpec, record_of
from thinkml.models import ModelManager, TransferModel, create, predict
from thinkml.training import ActiveLearner, ModelTrainer, TrainingConfig, TransferLearner

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
BYTES[:20] //= 4  # dark ones
Y = np.arange(40) // 20
UNIT = (BYTES / 255).astype(np.float32)
STILL = TrainingConfig(optimizer='sgd', learning_rate=1e-30, epochs=1, batch_size=20)


class Bright(nnx.Module):
    """Tells dark pictures from bright ones by their mean, given how bright white is."""

    def __init__(self, white=1.0):
        self.bias = nnx.Param(jnp.array([-0.3 * white]))

    def __call__(self, x):
        x = x.astype(jnp.float32)
        return x.reshape(len(x), -1).mean(1, keepdims=True) + self.bias[...]


def train(model, *data):
    return ModelTrainer(STILL).train(model, *data, progress=False).last()


def trained(pictures, white=1.0):
    model = Bright(white)
    train(model, pictures, Y)
    return model


@pytest.fixture(scope='module')
def unit():
    model = trained(UNIT)
    np.testing.assert_array_equal(predict(model, UNIT), Y)
    return model


def stored(pictures, tmp_path):
    file = h5py.File(tmp_path / 'x.h5', 'w')
    file['x'] = pictures
    return file['x']


WHOLE = {
    'bytes': BYTES,
    'int64': BYTES.astype(np.int64),
    'uint16': BYTES.astype(np.uint16) * 257,
    '12 bits': BYTES.astype(np.int32) * 16,
    'jax': jnp.asarray(BYTES),
    'list': BYTES.tolist(),
}


@pytest.mark.parametrize('kind', WHOLE)
def test_whole_numbers_are_refused_by_a_model_of_fractions(unit, kind):
    says = (
        r': got u?int\d+ from \d+ to \d+, expected float32 from 0 to 1, which the model was trained'
    )
    pictures = WHOLE[kind]
    for argument, call in (
        ('X', lambda: predict(unit, pictures)),
        ('X', lambda: predict(unit, pictures[30:31])),
        ('X_test', lambda: ModelEvaluator().evaluate(unit, pictures, Y)),
        ('X_val', lambda: train(Bright(), UNIT, Y, pictures, Y)),
        ('X, batch 1', lambda: predict(unit, lambda: iter([np.asarray(pictures)]))),
        ('X_unlabeled', lambda: ActiveLearner(Bright()).start(pictures, UNIT, Y)),
    ):
        with pytest.raises(DataError, match=f'^{argument}{says}'):
            call()


def test_pictures_on_disk_and_flat_ones_are_refused_as_well(unit, tmp_path):
    with pytest.raises(DataError, match=r'^X: got uint8 from 0 to 255, expected float32'):
        predict(unit, stored(BYTES, tmp_path))
    loaded = ModelManager().load_model(ModelManager().save_model(unit, tmp_path / 'model'))
    with pytest.raises(DataError, match=r'^X: got uint8 from 0 to 255, expected float32'):
        predict(loaded, BYTES)
    flat = trained(UNIT.reshape(40, -1))
    with pytest.raises(DataError, match=r'^X: got uint8 .* X.astype\(.float32.\) / 255'):
        predict(flat, BYTES.reshape(40, -1))
    standardised = trained((UNIT - 0.5) / 0.25)
    with pytest.raises(DataError, match=r'^X: got uint8 from 0 to 255, expected float32 from -2'):
        predict(standardised, BYTES)


def test_whole_numbers_on_the_scale_of_the_training_are_the_same_pictures():
    model = trained(BYTES.astype(np.float32), 255)
    for same in (BYTES, BYTES.astype(np.int64), BYTES.astype(np.float64)):
        np.testing.assert_array_equal(predict(model, same), Y)
    masks = trained((BYTES > 40).astype(np.float32), 2)
    assert predict(masks, (BYTES > 40).astype(np.uint8)).shape == (40,)
    # Tables may well hold larger numbers than those of the training.
    table = trained(UNIT.reshape(40, -1))
    assert predict(table, 100 * np.ones((2, 48), int)).shape == (2,)


@pytest.mark.parametrize(
    ('first', 'then'),
    [
        (UNIT, 255 * UNIT),
        (255 * UNIT, UNIT),
        (BYTES.astype(np.uint16) * 257, BYTES),
        (BYTES.astype(np.int32), BYTES.astype(np.int32) * 257),
        (BYTES // 255, BYTES),
    ],
)
def test_other_ranges_of_the_same_kind_are_questioned(first, then):
    model = trained(first)
    for call in (lambda: predict(model, then), lambda: ModelEvaluator().evaluate(model, then, Y)):
        with pytest.warns(ThinkMLWarning, match='^X.*: got .* from 0 to .*, and the model was tra'):
            call()


SIGNALS = RNG.normal(size=(40, 8, 12)).astype(np.float32)


@pytest.mark.parametrize(
    ('first', 'then'),
    [
        (SIGNALS, 50 * SIGNALS),  # sequences, where an outlier is no other scale
        (200 * abs(SIGNALS), abs(SIGNALS) / 10),
        (SIGNALS[..., :8, None], 50 * SIGNALS[..., :8, None]),  # spectrograms in decibels
        (abs(SIGNALS), 50 * abs(SIGNALS)),
        (RNG.integers(0, 50, (40, 6, 7)), RNG.integers(0, 3000, (40, 6, 7))),  # ids of words
        (UNIT[:, 0, :, 0], RNG.integers(0, 5, (40, 4)).astype(np.uint8)),  # a small count
        (UNIT[:, 0, :, 0], 50 * UNIT[:, 0, :, 0]),
    ],
)
def test_what_is_no_picture_may_have_any_scale(first, then):
    model = trained(first)
    assert predict(model, then).shape == (40,)
    train(model, then, Y)


@pytest.mark.parametrize('shape', [(192,), (16, 12)])
@pytest.mark.parametrize('then', [np.float32, np.int64])
def test_flat_pictures_and_those_without_channels_are_questioned(shape, then):
    unit = RNG.random((40, *shape)).astype(np.float32)
    model, pixels = trained(unit), (255 * unit).astype(then)
    if then is np.int64 and len(shape) > 1:
        with pytest.raises(DataError, match=r'^X: got int64 from 0 to 25\d, expected float32'):
            predict(model, pixels)
    else:
        with pytest.warns(ThinkMLWarning, match=r'^X: got .* 25\d, and the model was trained on'):
            predict(model, pixels)
    with pytest.warns(ThinkMLWarning, match=r'^X_train: got .*, and the model was .* before'):
        train(model, pixels, Y)


class Examples:
    """A data set whose first picture is black."""

    def __init__(self, pictures):
        self.pictures = np.concatenate([pictures[:1] * 0, pictures[1:]])

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index], Y[index]


def test_a_black_picture_first_does_not_hide_the_others(unit):
    for call in (
        lambda: predict(unit, Examples(BYTES)),
        lambda: ModelEvaluator().evaluate(unit, Examples(BYTES)),
        lambda: train(Bright(), Examples(UNIT), None, Examples(BYTES)),
    ):
        with pytest.raises(DataError, match=r'^X\w*: got uint8 from 0 to 255, expected float32'):
            call()
    assert predict(unit, Examples(UNIT)).shape == (40,)


@pytest.mark.parametrize('then', [BYTES, 255 * UNIT, BYTES.astype(np.int64)])
def test_a_training_on_another_range_is_questioned(then):
    model = trained(UNIT)
    with pytest.warns(
        ThinkMLWarning, match='^X_train: got .* from 0 to 255, and the model was .* 1 b'
    ):
        train(model, then, Y)
    train(model, then, Y)  # it is what the model knows now
    with pytest.warns(ThinkMLWarning, match='^X_train: got .* from 0 to 1, and the model was'):
        train(model, lambda: iter([(UNIT, Y)]))


def test_ranges_are_kept_in_files_and_files_without_them_can_be_read(unit, tmp_path):
    assert record_of(unit).input_spec.arrays.range == (0, 1)
    path = ModelManager().save_model(unit, tmp_path / 'model')
    spec = record_of(ModelManager().load_model(path)).input_spec
    assert spec == record_of(unit).input_spec and spec.arrays.range == (0, 1)
    values = json.loads((path / 'record.json').read_text())['input_spec']
    values.pop('range')
    before = InputSpec.from_dict(values)
    assert before == spec and before.arrays.range is None
    table = {'shape': [1], 'dtype': 'float32', 'columns': ['a']}
    assert ArraySpec.from_dict(table).to_dict() == table
    for wrong in ([1.0], [1.0, 0.0], [0, 1], 'ab', [float('nan'), 1.0], [0.0, float('inf')]):
        with pytest.raises(ValueError, match='is not a range of values'):
            ArraySpec.from_dict(table | {'range': wrong})


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (UNIT.transpose(0, 3, 1, 2), r'channels first: pass X.transpose\(0, 2, 3, 1\)'),
        (UNIT[..., 0], r'no axis of channels: pass numpy.repeat\(X\[..., None\], 3, axis=-1\)'),
        (UNIT[..., :1], r'are grey: pass numpy.repeat\(X, 3, axis=-1\)'),
        (np.concatenate([UNIT, UNIT[..., :1]], -1), r'opacity: pass X\[..., :3\]'),
        (UNIT[..., :2], 'have 2 channels instead of 3'),
        (UNIT[:, :3], r'\(3, 4, 3\), expected \(4, 4, 3\), which .* on\.$'),
    ],
)
def test_other_axes_are_named(unit, given, says):
    with pytest.raises(DataError, match=f'^X: got rows of shape .*{says}'):
        predict(unit, given)
    with pytest.raises(DataError, match=f'^X, batch 1: got rows of shape .*{says}'):
        predict(unit, lambda: iter([given]))
    with pytest.raises(DataError, match=r'^X_val: got rows of shape'):
        train(Bright(), UNIT, Y, given, Y)


def small():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Conv(3, 2, (3, 3), rngs=rngs), lambda x: x.mean((1, 2)), nnx.Linear(2, 2, rngs=rngs)
    )


def test_a_model_that_fails_says_which_pictures_it_takes():
    model = small()
    first = UNIT.transpose(0, 3, 1, 2)
    for given, says in (
        (first, r'They are channels first: pass X_train.transpose'),
        (UNIT[..., :1], r'They are grey: pass numpy.repeat\(X_train, 3, axis=-1\)'),
        (UNIT[..., [0, 1, 2, 0]], r'The fourth channel is opacity: pass X_train\[..., :3\]'),
        (UNIT[..., :2], 'They have 2 channels instead of 3'),
    ):
        with pytest.raises(DataError, match=f'X_train: got rows .* {says}'):
            train(small(), given, Y)
    train(model, UNIT, Y)
    says = (
        r'X_train: got rows .* It was trained on 4 x 4 x 3 float32. They are channels first: pass'
    )
    with pytest.raises(DataError, match=says):
        train(model, first, Y)
    with pytest.raises(DataError, match=says):
        TransferLearner(model).fine_tune(None, first, Y, progress=False)


# --- transfer -----------------------------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
LABELS = np.arange(8) % 2


def fine_tune(X, **options):
    learner = TransferLearner('resnet18', weights=None, config=STILL)
    return learner.fine_tune(X_train=X, y_train=LABELS, progress=False, **options)


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (
            IMAGES.astype(np.float32),
            r"got float32 from 0 to 255, expected .* X_train.astype\('uint8",
        ),
        (
            IMAGES.astype(np.uint16) * 257,
            'got uint16 from 0 to 65535, expected pixel values from 0',
        ),
        (IMAGES.astype(np.int16) - 128, 'got int16 from -128 to 127, expected pixel values'),
        (
            IMAGES.transpose(0, 3, 1, 2),
            r'got .* \(3, 32, 32\), expected .* They are channels first',
        ),
        (IMAGES[..., 0], r'got .* \(32, 32\), expected \(height, width, 3\).* no axis of channels'),
        (IMAGES[..., :1], r'got .* \(32, 32, 1\), expected .* They are grey'),
        (IMAGES[..., [0, 1, 2, 0]], r'got .* expected .* The fourth channel is opacity'),
        (IMAGES[..., :2], r'got .* expected .* have 2 channels instead of 3'),
    ],
)
def test_a_pretrained_base_says_which_pictures_it_takes(given, says):
    heads = (None, nnx.Linear(512, 2, rngs=nnx.Rngs(0)))
    for head in heads:
        with pytest.raises(DataError, match=f'^X_train: {says}'):
            fine_tune(given, model=head)


def test_pixels_from_0_to_1_are_questioned_by_a_pretrained_base():
    scaled = (IMAGES / 255).astype(np.float32)
    head = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    class Mean(nnx.Module):
        def __call__(self, x):
            return x.mean((1, 2))

    model = TransferModel(Mean(), head, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.warns(ThinkMLWarning, match='^X_train: got float32 from 0 to 1, .* standardised'):
        train(model, scaled, LABELS)
    model = TransferModel(Mean(), head, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(DataError, match=r'^X_train: got float32 from 0 to 255, expected uint8'):
        train(model, IMAGES.astype(np.float32), LABELS)
    train(model, ((scaled - 0.45) / 0.22).astype(np.float32), LABELS)
    with pytest.raises(DataError, match=r'^X: got uint8 from 0 to 255, expected float32 from -2'):
        predict(model, IMAGES)


def test_a_whole_model_that_shares_a_pretrained_base_questions_raw_floats():
    with pytest.warns(ThinkMLWarning, match='X_train: values of up to 255, which a whole model'):
        fine_tune(IMAGES.astype(np.float32), model=create('resnet18', 2, seed=0), epochs=1)


@pytest.mark.parametrize('scale', [1, 255])
def test_a_base_of_ones_own_compares_pixels_with_its_training(scale):
    base = small()
    train(base, UNIT, Y)
    learner = TransferLearner(base, config=STILL)
    with pytest.warns(
        ThinkMLWarning, match='^X_train: got .* from 0 to 255, and the model was tra'
    ):
        learner.fine_tune(None, BYTES if scale == 1 else UNIT * scale, Y, progress=False)
    learner.fine_tune(None, UNIT, Y, progress=False)


@pytest.mark.parametrize(
    'images', [UNIT, jnp.asarray(UNIT), UNIT.tolist(), {'x': UNIT}, lambda: iter([(UNIT, Y)])]
)
def test_pictures_in_the_place_of_the_model_are_named(images):
    with pytest.raises(ModelTypeError, match=r'^model: got .* fine_tune\(X_train=images, y_train='):
        TransferLearner(small()).fine_tune(images, Y, progress=False)
    with pytest.raises(ModelTypeError, match=r'^model: got .*expected a'):
        ModelTrainer(STILL).train(images, Y)
