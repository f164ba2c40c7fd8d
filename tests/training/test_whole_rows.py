"""Metrics of whole rows that training records equal those of an evaluation of the same rows."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.test_elements import PixelNet, Tagger, words
from tests.training.test_sequences import TAGS, TOKENS, Reader
from thinkml.errors import ConfigError
from thinkml.evaluation import ModelEvaluator
from thinkml.training import ModelTrainer, TrainingConfig

ROWS = 25
# The parameters stay as they are, so the metrics of an epoch are those of the model.
SETTINGS = {'epochs': 1, 'batch_size': 8, 'learning_rate': 1e-12, 'validation_split': 0}


class Channels(nnx.Module):
    """Mixes neighbouring columns of an image, whose channels it keeps."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.scale * (0.75 * x + 0.25 * x[:, :, ::-1])


def images(shape, data_range=1):
    rng = np.random.default_rng(0)
    # Flat and bright, so that a variance is a small difference of large numbers.
    values = 0.9 + 0.05 * rng.random((ROWS, *shape))
    values[::2] = rng.random(values[::2].shape)
    return (values * data_range).astype(np.float32)


def recorded(model, x, y, metrics, settings=None, **more):
    """Returns the metrics of training and of validation, on the same rows."""
    config = TrainingConfig(**SETTINGS | (settings or {}))
    history = ModelTrainer(config).train(model, x, y, x, y, metrics=metrics, progress=False, **more)
    return [[history[prefix + name][-1] for name in metrics] for prefix in ('', 'val_')]


@pytest.mark.parametrize('data_range', [1, 255])
@pytest.mark.parametrize('shape', [(9, 11), (8, 7, 3), (7, 9, 1), (7, 8, 9, 2)])
def test_the_quality_of_images_is_that_of_scikit_image(shape, data_range):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    y, names = images(shape, data_range), ['psnr', 'ssim']
    names = names if data_range == 1 else [f'{name}_255' for name in names]
    options = {'data_range': data_range, 'channel_axis': -1 if len(shape) > 2 else None}
    pairs = zip(y.astype(float), np.asarray(Channels()(y), float), strict=True)
    expected = [
        (
            peak_signal_noise_ratio(*pair, data_range=data_range),
            structural_similarity(*pair, **options),
        )
        for pair in pairs
    ]
    for found in recorded(Channels(), y, y, names):
        np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-6)


@pytest.mark.parametrize('parts', [1, 2])
def test_a_row_matches_exactly_if_all_tokens_that_count_are_right(parts):
    x, y = words()
    model = Tagger()
    right = np.asarray(model(x)).argmax(-1)
    y = np.where((y != -100) & (np.arange(len(y)) % 3 == 0)[:, None], right, y)
    y[5] = -100  # a row that counts nowhere
    found = recorded(model, x, y, ['exact_match'], {'accumulate_steps': parts})
    counts = (y != -100).any(axis=1)
    matches = ((right == y) | (y == -100)).all(axis=1)[counts]
    assert 0 < matches.mean() < 1
    np.testing.assert_allclose(found, np.full((2, 1), matches.mean()), rtol=1e-6)
    evaluated = ModelEvaluator().evaluate(model, x, y, metrics=['exact_match'])
    np.testing.assert_allclose(evaluated['exact_match'], matches.mean(), rtol=1e-6)


def test_weights_change_what_is_learned_and_not_the_metrics():
    x, y = words()
    weight = np.random.default_rng(0).random(y.shape) + 0.1
    plain = recorded(Tagger(), x, y, ['exact_match'])
    assert recorded(Tagger(), x, y, ['exact_match'], sample_weight=weight) == plain


def test_sequences_of_different_lengths():
    model = Reader()
    tags = [np.argmax(model(row[None], np.ones((1, len(row)), bool))[0], -1) for row in TOKENS]
    tags = [own if len(own) % 2 else other for own, other in zip(tags, TAGS, strict=True)]
    found = recorded(model, TOKENS, tags, ['exact_match'])
    expected = ModelEvaluator().evaluate(model, TOKENS, tags, metrics=['exact_match'])
    assert 0 < expected['exact_match'] < 1
    np.testing.assert_allclose(found, np.full((2, 1), expected['exact_match']), rtol=1e-6)


class TwoHeads(nnx.Module):
    def __init__(self):
        self.image, self.mask = Channels(), PixelNet(3)

    def __call__(self, x):
        return {'image': self.image(x), 'mask': self.mask(x)}


def test_heads_count_the_rows_that_have_a_target():
    x = images((8, 9, 1))
    y = {'image': x, 'mask': (x[..., 0] > 0.92) * 1 + (x[..., 0] < 0.2)}
    weight = {'image': np.arange(ROWS) % 2}
    metrics = {'image': ['psnr', 'ssim'], 'mask': ['exact_match']}
    config = TrainingConfig(**SETTINGS)
    history = ModelTrainer(config).train(
        TwoHeads(), x, y, metrics=metrics, sample_weight=weight, progress=False
    )
    alone = recorded(Channels(), x[1::2], x[1::2], metrics['image'])[0]
    found = [history[f'image_{name}'][0] for name in metrics['image']]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    assert history['mask_exact_match'][0] == 0


def test_a_row_that_is_predicted_exactly_makes_the_noise_ratio_infinite():
    y = images((8, 9, 1))
    y[3] = 0.5
    assert recorded(Channels(), y, y, ['psnr'], {'batch_size': 4}) == [[np.inf], [np.inf]]


@pytest.mark.parametrize(
    ('y', 'metric', 'match'),
    [
        (images((8, 9, 1), 255), 'psnr', "'psnr' is for targets within a range of 1, got targets"),
        (images((6, 9)), 'ssim', r'at least 7 x 7 pixels, got rows \(6, 9\)'),
        (images((8, 9, 1)), 'ssim_2.5', "unknown 'ssim_2.5'|got 'ssim_2.5'"),
    ],
    ids=['range', 'size', 'name'],
)
def test_other_images_are_refused_before_a_compile(y, metric, match, count_compiles):
    def refused():
        with pytest.raises(ConfigError, match=match):
            recorded(Channels(), y, y, [metric])

    assert count_compiles(refused) == 0


def test_validation_targets_of_a_larger_range_are_refused():
    y = images((8, 9, 1))
    train = functools.partial(ModelTrainer(TrainingConfig(**SETTINGS)).train, Channels(), y, y)
    with pytest.raises(ConfigError, match="'psnr' is for targets within a range of 1"):
        train(y, 2 * y, metrics=['psnr'], progress=False)
