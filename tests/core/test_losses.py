import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics as sk

from thinkml.core.objectives.losses import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    Huber,
    Quantile,
    binary_cross_entropy,
    cross_entropy,
    decides,
    get_loss,
    hinge,
    huber,
    mse,
    weighted_mean,
)
from thinkml.errors import ConfigError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(20, 4)).astype(np.float32)
CLASSES = RNG.integers(0, 4, 20).astype(np.int32)
SHARES = RNG.dirichlet(np.ones(4), 20).astype(np.float32)
BITS = RNG.integers(0, 2, (20, 4)).astype(np.float32)
TARGETS = RNG.normal(scale=3, size=(20, 4)).astype(np.float32)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got), expected, rtol=2e-6, atol=2e-6)


ERROR = TARGETS.astype(np.float64) - LOGITS
ONE_HOT = np.eye(4)[CLASSES]
P = np.exp(log_softmax(LOGITS))
P_TRUE = P[np.arange(20), CLASSES]
P_BITS = np.where(BITS == 1, sigmoid(LOGITS), 1 - sigmoid(LOGITS))
SIGNS = 2 * BITS.astype(np.float64) - 1
OTHERS = np.where(ONE_HOT == 1, -np.inf, LOGITS).max(1)
SMOOTH_BITS = 0.8 * BITS + 0.1


@pytest.mark.parametrize(
    ('loss_fn', 'labels', 'expected'),
    [
        ('cross_entropy', CLASSES, -np.log(P_TRUE)),
        ('cross_entropy', SHARES, -(SHARES * np.log(P)).sum(1)),
        ('cross_entropy', ONE_HOT.astype(np.int32), -np.log(P_TRUE)),
        (CrossEntropy(), CLASSES, -np.log(P_TRUE)),
        (CrossEntropy(0.2), CLASSES, -((0.8 * ONE_HOT + 0.05) * np.log(P)).sum(1)),
        (CrossEntropy(0.2), SHARES, -((0.8 * SHARES + 0.05) * np.log(P)).sum(1)),
        ('binary_cross_entropy', BITS, -np.log(P_BITS).mean(1)),
        (
            'binary_cross_entropy',
            SHARES,
            -(SHARES * np.log(sigmoid(LOGITS)) + (1 - SHARES) * np.log(sigmoid(-LOGITS))).mean(1),
        ),
        (
            BinaryCrossEntropy(0.2),
            BITS.astype(np.int32),
            -(
                SMOOTH_BITS * np.log(sigmoid(LOGITS))
                + (1 - SMOOTH_BITS) * np.log(sigmoid(-LOGITS))
            ).mean(1),
        ),
        ('focal', CLASSES, -((1 - P_TRUE) ** 2) * np.log(P_TRUE)),
        (Focal(gamma=0.5), CLASSES, -((1 - P_TRUE) ** 0.5) * np.log(P_TRUE)),
        ('focal', BITS, (-((1 - P_BITS) ** 2) * np.log(P_BITS)).mean(1)),
        (
            Focal(gamma=3, alpha=0.25),
            BITS,
            (-np.where(BITS == 1, 0.25, 0.75) * (1 - P_BITS) ** 3 * np.log(P_BITS)).mean(1),
        ),
        (Focal(gamma=0), CLASSES, -np.log(P_TRUE)),
        ('hinge', CLASSES, np.maximum(0, 1 + OTHERS - LOGITS[np.arange(20), CLASSES])),
        ('hinge', BITS, np.maximum(0, 1 - SIGNS * LOGITS).mean(1)),
        ('mse', TARGETS, (ERROR**2).mean(1)),
        ('mae', TARGETS, np.abs(ERROR).mean(1)),
        ('huber', TARGETS, np.where(abs(ERROR) < 1, ERROR**2 / 2, abs(ERROR) - 0.5).mean(1)),
        (
            Huber(2.5),
            TARGETS,
            np.where(abs(ERROR) < 2.5, ERROR**2 / 2, 2.5 * (abs(ERROR) - 1.25)).mean(1),
        ),
        ('log_cosh', TARGETS, np.log(np.cosh(ERROR)).mean(1)),
    ],
)  # fmt: skip
def test_a_loss_is_its_formula(loss_fn, labels, expected):
    loss_fn = get_loss(loss_fn)
    close(loss_fn(jnp.array(LOGITS), jnp.array(labels)), expected)
    close(jax.jit(loss_fn)(LOGITS, labels), expected)


@pytest.mark.parametrize('shape', [(20,), (20, 1), (20, 4)])
def test_the_poisson_loss_is_that_of_torch(shape):
    import torch

    rng = np.random.default_rng(0)
    counts = rng.poisson(3, shape).astype(np.float32)
    predictions = rng.gamma(2, size=shape).astype(np.float32)
    predictions[0] = 0
    reference = torch.nn.PoissonNLLLoss(log_input=False, eps=1e-7, reduction='none')
    expected = reference(torch.tensor(predictions), torch.tensor(counts)).numpy()
    got = get_loss('poisson')(jnp.array(predictions.reshape(20, -1)), jnp.array(counts))
    close(got, expected.reshape(20, -1).mean(1))


@pytest.mark.parametrize('loss_fn', ['binary_cross_entropy', 'focal', 'hinge', 'mse', 'huber'])
def test_one_output_may_have_an_axis_of_its_own(loss_fn):
    labels = jnp.array(CLASSES % 2)
    flat = get_loss(loss_fn)(jnp.array(LOGITS[:, 0]), labels.astype(jnp.float32))
    assert flat.shape == (20,)
    np.testing.assert_array_equal(flat, get_loss(loss_fn)(jnp.array(LOGITS[:, :1]), labels))


@pytest.mark.parametrize(('name', 'loss_fn'), (CLASSIFICATION_LOSSES | REGRESSION_LOSSES).items())
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_gradients_are_finite_for_saturated_outputs(name, loss_fn, scale):
    labels = CLASSES if decides(name) != 'regression' and name != 'binary_cross_entropy' else BITS
    logits = scale * LOGITS
    if name == 'quantile':  # of three columns
        logits, labels = logits[:, :3], labels[:, :3]
    if name == 'ctc':  # a row of 20 frames
        logits, labels = logits[None], np.array([[1, 2, 2, -1]])

    def total(logits):
        return loss_fn(logits, jnp.array(labels)).sum()

    assert np.isfinite(jax.grad(total)(logits)).all()


@pytest.mark.parametrize('gamma', [0, 0.5, 1, 2])
def test_focal_gradients_are_finite_for_every_gamma(gamma):
    for labels in (CLASSES, BITS):
        total = lambda logits, y=labels: Focal(gamma)(logits, jnp.array(y)).sum()  # noqa: E731
        assert np.isfinite(jax.grad(total)(100 * LOGITS)).all()


def test_equal_settings_are_one_loss():
    assert CrossEntropy(0.1) == CrossEntropy(label_smoothing=0.1) != CrossEntropy(0.2)
    assert get_loss(CrossEntropy(0.1)) == get_loss(CrossEntropy(0.1))
    assert len({Focal(), Focal(2.0, None), get_loss('focal'), Focal(1.0)}) == 2
    assert get_loss('cross_entropy') is get_loss(cross_entropy) is cross_entropy


@pytest.mark.parametrize(
    ('loss_fn', 'expected'),
    [
        *((name, 'regression') for name in REGRESSION_LOSSES),
        *((loss_fn, 'regression') for loss_fn in REGRESSION_LOSSES.values()),
        (Huber(3.0), 'regression'),
        ('cross_entropy', 'softmax'),
        (cross_entropy, 'softmax'),
        (CrossEntropy(0.1), 'softmax'),
        ('binary_cross_entropy', 'sigmoid'),
        (binary_cross_entropy, 'sigmoid'),
        (BinaryCrossEntropy(), 'sigmoid'),
        ('focal', 'classification'),
        (Focal(1.0), 'classification'),
        (hinge, 'classification'),
        ('no such', None),
        (None, None),
        (optax.l2_loss, None),
        (['unhashable'], None),
    ],
)
def test_what_a_loss_tells_of_the_task(loss_fn, expected):
    assert decides(loss_fn) == expected


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: CrossEntropy(1.0), 'label_smoothing: got 1.0'),
        (lambda: BinaryCrossEntropy(-0.1), 'label_smoothing: got -0.1'),
        (lambda: Focal(gamma=-1), 'gamma: got -1'),
        (lambda: Focal(alpha=2), 'alpha: got 2'),
        (lambda: Focal(alpha=0.5)(jnp.array(LOGITS), jnp.array(CLASSES)), 'class_weight'),
        (lambda: Huber(0), 'delta: got 0'),
        (lambda: get_loss('cross_entropi'), "Did you mean 'cross_entropy'"),
        (lambda: get_loss(CrossEntropy), r'expected an object of it: CrossEntropy\(\)'),
    ],
)  # fmt: skip
def test_settings_that_are_impossible(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_huber_is_the_default_one():
    close(huber(jnp.array(LOGITS), jnp.array(TARGETS)), Huber()(LOGITS, jnp.array(TARGETS)))


def test_weighted_mean_of_weights_that_are_all_zero_is_zero_with_gradient_zero():
    def loss(scale):
        return weighted_mean(mse(scale * LOGITS, jnp.array(TARGETS)), jnp.zeros(20))

    assert jax.value_and_grad(loss)(2.0) == (0.0, 0.0)


def test_weighted_mean_is_that_of_numpy():
    weight = RNG.uniform(size=20).astype(np.float32)
    weight[3] = 0
    values = np.where(np.arange(20) == 3, np.nan, LOGITS[:, 0])
    expected = np.average(np.nan_to_num(values), weights=weight)
    close(weighted_mean(jnp.array(values), jnp.array(weight)), expected)


def test_the_quantile_loss_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    target, outputs = rng.normal(size=(20, 1)).repeat(3, axis=1), rng.normal(size=(20, 3))
    expected = np.mean(
        [
            sk.mean_pinball_loss(target[:, i], outputs[:, i], alpha=q)
            for i, q in enumerate((0.1, 0.5, 0.9))
        ]
    )
    got = get_loss('quantile')(jnp.array(outputs), jnp.array(target))
    assert got.shape == (20,) and float(got.mean()) == pytest.approx(expected, rel=1e-6)
    assert Quantile([0.1, 0.5, 0.9]) == Quantile()


@pytest.mark.parametrize('quantiles', [(), (0,), (0.5, 1), 'a', (True,), 0])
def test_other_quantiles_are_refused(quantiles):
    with pytest.raises(ConfigError, match='quantiles: got'):
        Quantile(quantiles)


def test_the_columns_of_quantiles_are_counted():
    with pytest.raises(ConfigError, match=r'3 quantiles for targets of 2 columns.*np\.stack'):
        Quantile()(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
