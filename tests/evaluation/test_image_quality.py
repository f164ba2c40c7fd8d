"""The quality of images equals that of scikit-image."""

import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator

ROWS = 8


class Blurred(nnx.Module):
    """A model that mixes neighbouring columns of an image."""

    def __call__(self, x):
        return 0.75 * x + 0.25 * x[:, :, ::-1]


def images(shape, data_range=1):
    rng = np.random.default_rng(0)
    return rng.random((ROWS, *shape)).astype(np.float32) * data_range


def evaluated(y, metrics, model=None, **more):
    return ModelEvaluator().evaluate(model or Blurred(), y, y, metrics=metrics, **more)


@pytest.mark.parametrize('data_range', [1, 255])
@pytest.mark.parametrize('shape', [(9, 11), (9, 8, 3), (8, 7, 1), (7, 8, 9, 2)])
def test_it_equals_that_of_scikit_image(shape, data_range):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    y = images(shape, data_range)
    pairs = zip(y.astype(float), Blurred()(y).astype(float), strict=True)
    channels = -1 if len(shape) > 2 else None
    weight = np.arange(1.0, ROWS + 1)
    values = [
        (
            peak_signal_noise_ratio(*pair, data_range=data_range),
            structural_similarity(*pair, data_range=data_range, channel_axis=channels),
        )
        for pair in pairs
    ]
    names = ['psnr', 'ssim'] if data_range == 1 else ['psnr_255', 'ssim_255']
    found = evaluated(y, names)
    np.testing.assert_allclose([found[n] for n in names], np.mean(values, axis=0), rtol=1e-6)
    weighted = evaluated(y, names, sample_weight=weight, slices={'last': weight > 3})
    expected = np.average(values, axis=0, weights=weight)
    np.testing.assert_allclose([weighted[n] for n in names], expected, rtol=1e-6)
    expected = np.average(values[3:], axis=0, weights=weight[3:])
    of_slice = weighted.slices['last'].metrics
    np.testing.assert_allclose([of_slice[n] for n in names], expected, rtol=1e-6)
    for name in names:
        low, high = found.confidence_intervals[name]
        assert low < found[name] < high


def test_pixels_without_weight_do_not_count_in_the_noise():
    y = images((8, 9, 1))
    weight = np.ones((ROWS, 8, 9))
    weight[:, 3:] = 0
    found = evaluated(y, ['psnr'], sample_weight=weight)
    squares = np.square(y.astype(float) - Blurred()(y))[:, :3].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found['psnr'], (-10 * np.log10(squares)).mean(), rtol=1e-6)
    with pytest.raises(ConfigError, match='sample_weight of pixels'):
        evaluated(y, ['ssim'], sample_weight=weight)


def test_exact_rows_are_reported():
    y = images((8, 9, 1))
    y[1] = 0.5
    weight = np.arange(ROWS) != 1
    with pytest.warns(ThinkMLWarning, match='psnr: infinite, since 1 of 8 rows'):
        found = evaluated(y, ['psnr'])
    assert found['psnr'] == np.inf
    assert np.isnan(found.confidence_intervals['psnr']).all()
    assert np.isfinite(evaluated(y, ['psnr'], sample_weight=weight)['psnr'])


def test_other_ranges_and_rows_are_refused():
    with pytest.raises(ConfigError, match="'psnr' is for targets within a range of 1, got targets"):
        evaluated(images((8, 9, 1), 255), ['psnr'])
    with pytest.raises(ConfigError, match=r'at least 7 x 7 pixels, got rows \(6, 9\)'):
        evaluated(images((6, 9)), ['ssim'])
