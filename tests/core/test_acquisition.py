import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from thinkml.core.active.acquisition import (
    bald,
    entropy,
    expected_gradient_length,
    least_confident,
    margin,
    variance,
    variation_ratio,
)
from thinkml.errors import DataError

OF_PROBABILITIES = (least_confident, margin, entropy)
OF_DRAWS = (bald, variation_ratio)


def probabilities_of(*shape, seed=0, sharpness=1.0):
    logits = np.random.default_rng(seed).normal(size=shape) * 3 * sharpness
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return (exps / exps.sum(-1, keepdims=True)).astype(np.float32)


def close(scores, reference):
    assert scores.dtype == np.float32
    assert scores.shape == reference.shape
    np.testing.assert_allclose(scores, reference, rtol=1e-5, atol=1e-6)


# --- each against its definition --------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [2, 3, 10])
def test_scores_of_probabilities_are_their_definitions(num_classes):
    probabilities = probabilities_of(200, num_classes)
    p = probabilities.astype(np.float64)
    ordered = np.sort(p, axis=1)
    close(least_confident(probabilities), 1 - p.max(1))
    close(margin(probabilities), 1 - (ordered[:, -1] - ordered[:, -2]))
    close(entropy(probabilities), -(p * np.log(p)).sum(1))


def test_scores_of_draws_are_their_definitions():
    draws = probabilities_of(7, 150, 4)
    p = draws.astype(np.float64)
    mean = p.mean(0)
    of_mean, of_each = -(mean * np.log(mean)).sum(-1), -(p * np.log(p)).sum(-1)
    close(bald(draws), of_mean - of_each.mean(0))
    votes = [np.bincount(row, minlength=4) for row in p.argmax(-1).T]
    close(variation_ratio(draws), np.array([1 - row.max() / 7 for row in votes]))


def test_variance_is_that_of_each_output_added_up():
    draws = np.random.default_rng(0).normal(size=(9, 80, 3)).astype(np.float32)
    close(variance(draws), draws.astype(np.float64).var(axis=0).sum(-1))
    np.testing.assert_array_equal(variance(draws[..., 0]), variance(draws[..., :1]))


def gradient_lengths(p, h):
    """Computes the gradient explicitly, row by row and class by class."""
    lengths = []
    for probabilities, inputs in zip(p, np.c_[h, np.ones(len(h))], strict=True):
        gradients = [
            np.outer(probabilities - label, inputs) for label in np.eye(len(probabilities))
        ]
        lengths.append(probabilities @ [np.linalg.norm(gradient) for gradient in gradients])
    return np.array(lengths)


def test_expected_gradient_length_is_that_of_the_last_layer():
    probabilities = probabilities_of(60, 5)
    features = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    reference = gradient_lengths(probabilities.astype(float), features.astype(float))
    close(expected_gradient_length(probabilities, features), reference)


def test_expected_gradient_length_stays_exact_where_the_model_is_sure():
    rest = 10.0 ** -np.arange(2, 9)
    probabilities = np.stack([1 - rest, rest * 0.75, rest * 0.25], axis=1)
    features = np.ones((7, 1))
    reference = gradient_lengths(probabilities, features)
    np.testing.assert_allclose(
        expected_gradient_length(probabilities, features), reference, rtol=1e-5
    )


def test_scores_stay_exact_where_the_model_is_sure():
    rest = 10.0 ** -np.arange(2, 36, 3)
    of_others = [rest * 0.75, rest * 0.25]
    probabilities = np.stack([1 - rest, *of_others], axis=1)
    np.testing.assert_allclose(least_confident(probabilities), rest, rtol=1e-5)
    np.testing.assert_allclose(margin(probabilities), 1.75 * rest, rtol=1e-5)
    of_first = -(1 - rest) * np.log1p(-rest)
    reference = of_first - np.sum([p * np.log(p) for p in of_others], axis=0)
    np.testing.assert_allclose(entropy(probabilities), reference, rtol=1e-5)
    # The other of the two draws is half as uncertain: KL(p || q) up to terms of order rest**2.
    draws = np.stack([probabilities, np.stack([1 - rest / 2, *(p / 2 for p in of_others)], axis=1)])
    sure = rest < 1e-6
    kl = (np.log(4 / 3) - 1 + 3 / 4 + (np.log(2 / 3) - 1 + 3 / 2) / 2) / 2 * rest
    np.testing.assert_allclose(bald(draws)[sure], kl[sure], rtol=1e-5)


def test_the_gradient_is_the_one_jax_takes():
    rng = np.random.default_rng(0)
    h, w, b = rng.normal(size=4), rng.normal(size=(4, 3)), rng.normal(size=3)
    p = jax.nn.softmax(h @ w + b)

    def length(label):
        gradients = jax.grad(
            lambda params: optax.softmax_cross_entropy_with_integer_labels(
                h @ params[0] + params[1], label
            )
        )((w, b))
        return optax.tree.norm(gradients)

    expected = sum(p[k] * length(k) for k in range(3))
    np.testing.assert_allclose(expected_gradient_length(p[None], h[None]), expected, rtol=1e-5)


# --- values at the ends of the ranges ---------------------------------------------------------


@pytest.mark.parametrize('score', OF_PROBABILITIES)
def test_a_sure_model_scores_0_and_an_even_one_most(score):
    sure, even = np.eye(4)[[2]], np.full((1, 4), 0.25)
    assert score(sure).tolist() == [0]
    assert score(even)[0] >= score(probabilities_of(500, 4)).max()


def test_draws_that_agree_score_0_and_those_that_differ_most():
    agree = np.repeat(probabilities_of(1, 50, 3), 5, axis=0)
    np.testing.assert_allclose(bald(agree), 0, atol=1e-6)
    assert (bald(agree) >= 0).all()
    assert variation_ratio(agree).tolist() == [0] * 50
    differ = np.eye(3)[:, None, :]
    np.testing.assert_allclose(bald(differ), np.log(3), rtol=1e-6)
    np.testing.assert_allclose(variation_ratio(differ), 2 / 3, rtol=1e-6)


# --- compared with scikit-activeml ------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [2, 10])
@pytest.mark.parametrize(
    ('score', 'method'),
    [(least_confident, 'least_confident'), (margin, 'margin_sampling'), (entropy, 'entropy')],
)
def test_scores_are_those_of_scikit_activeml(score, method, num_classes):
    from skactiveml.pool import uncertainty_scores  # imports torch, slowly

    probabilities = probabilities_of(400, num_classes, seed=3)
    close(score(probabilities), uncertainty_scores(probabilities.astype(float), method=method))


def test_bald_is_that_of_scikit_activeml():
    from skactiveml.pool import batch_bald

    draws = probabilities_of(6, 300, 5, seed=4)
    close(bald(draws), batch_bald(draws.astype(float), batch_size=1, eps=1e-12)[0])


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize('score', OF_PROBABILITIES)
@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (np.ones(3), r'got shape \(3,\), expected \[rows, classes\]'),
        (np.ones((3, 1)), r'two classes or more.*pass \[1 - p, p\]'),
        (np.array([[2.0, -1.0]]), 'Apply a softmax'),
        (np.array([[4.0, 1.0]]), 'Apply a softmax'),
        (np.array([[0.5, np.nan]]), 'none is NaN'),
        ('text', 'expected an array of numbers'),
    ],
)
def test_what_are_no_probabilities_is_refused(score, values, message):
    with pytest.raises(DataError, match=f'^probabilities: .*{message}'):
        score(values)


@pytest.mark.parametrize('score', OF_DRAWS)
def test_draws_of_another_shape_are_refused(score):
    with pytest.raises(DataError, match=r'^draws: got shape .* expected \[draws, rows, classes\]'):
        score(probabilities_of(5, 3))
    with pytest.raises(DataError, match=r'^draws: got one draw, expected two or more'):
        score(probabilities_of(1, 5, 3))


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r'^draws: got shape \(1, 5\)'):
        variance(np.ones((1, 5)))
    with pytest.raises(DataError, match=r'^draws: got NaN or infinite'):
        variance(np.full((3, 5), np.inf))


def test_features_must_fit_the_probabilities():
    with pytest.raises(DataError, match=r'^features: got 4 rows for 5 rows'):
        expected_gradient_length(probabilities_of(5, 3), np.ones((4, 2)))
    with pytest.raises(DataError, match=r'^features: got shape \(5,\)'):
        expected_gradient_length(probabilities_of(5, 3), np.ones(5))


def test_probabilities_of_16_bits_are_taken():
    rounded = jnp.asarray(probabilities_of(50, 10), jnp.bfloat16)
    assert least_confident(rounded).shape == (50,)


def test_no_rows_are_no_scores():
    assert entropy(np.zeros((0, 3))).shape == (0,)
    assert bald(np.zeros((2, 0, 3))).shape == (0,)


def test_a_second_round_compiles_nothing(count_compiles):
    features = np.ones((64, 6), np.float32)

    def scores(seed):
        for score in OF_PROBABILITIES:
            score(probabilities_of(64, 3, seed=seed))
        for score in (*OF_DRAWS, variance):
            score(probabilities_of(4, 64, 3, seed=seed))
        expected_gradient_length(probabilities_of(64, 3, seed=seed), features)

    scores(0)
    assert count_compiles(scores, 1) == 0
