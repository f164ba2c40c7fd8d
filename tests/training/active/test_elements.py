"""ActiveLearner for rows with a label for each token or pixel."""

import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import cohen_kappa_score

from thinkml import core
from thinkml.errors import ConfigError, DataError, ModelTypeError
from thinkml.models import predict, predict_proba
from thinkml.training import ActiveLearner, DiverseBatches, TrainingConfig
from thinkml.training.active import label_store, pool_predictions
from thinkml.training.active.strategies import STRATEGIES

ROWS, TOKENS, WORDS, TAGS = 60, 6, 12, 3
RNG = np.random.default_rng(0)
X = RNG.integers(0, WORDS, (ROWS, TOKENS))
MASK = np.arange(TOKENS) < RNG.integers(1, TOKENS + 1, ROWS)[:, None]
Y = np.where(MASK, X % TAGS, -100)
LABELED, POOL = slice(0, 10), slice(10, None)
CONFIG = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.02)
FITTING = ('uncertainty', 'margin', 'entropy', 'bald', 'variation_ratio', 'random')


class Tagger(nnx.Module):
    def __init__(self, outputs=TAGS, seed=0):
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(WORDS, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, tokens):
        return self.out(self.dropout(nnx.relu(self.embed(tokens))))


class MaskedTagger(Tagger):
    def __call__(self, tokens, mask):
        return super().__call__(tokens) * mask[..., None]


class PixelNet(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(x)


def learner_of(strategy='margin', model=None, **options):
    options = {'config': CONFIG, 'query_size': 5} | options
    return ActiveLearner(model or Tagger(), strategy, **options)


def started(learner):
    learner.start(X[POOL], X[LABELED], Y[LABELED])
    return learner


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize('strategy', FITTING)
def test_each_fitting_strategy_learns_from_different_rows(strategy):
    history = learner_of(strategy).train(
        X[LABELED], Y[LABELED], X[POOL], 2, y_unlabeled=Y[POOL],
        X_val=X[LABELED], y_val=Y[LABELED], progress=False,
    )  # fmt: skip
    rows = np.concatenate([query.indices for query in history])
    assert len(set(rows.tolist())) == 10
    assert [query.num_labels for query in history] == [15, 20]
    assert 0 <= history[-1].metrics['val_accuracy'] <= 1


@pytest.mark.parametrize('mode', ['mean', 'max'])
@pytest.mark.parametrize('strategy', ['uncertainty', 'margin', 'entropy'])
@pytest.mark.parametrize('has_mask', [False, True])
def test_the_score_of_a_row_is_the_mean_or_the_largest_of_its_tokens(strategy, mode, has_mask):
    model = MaskedTagger() if has_mask else Tagger()
    inputs = {'tokens': X, 'mask': MASK} if has_mask else {'tokens': X}
    labeled, pool = ({n: a[part] for n, a in inputs.items()} for part in (LABELED, POOL))
    if not has_mask:
        labeled, pool = labeled['tokens'], pool['tokens']
    learner = learner_of(strategy, model, element_score=mode)
    learner.start(pool, labeled, Y[LABELED])
    rows = learner.query(7)
    score = {'uncertainty': core.least_confident, 'margin': core.margin, 'entropy': core.entropy}
    of_tokens = score[strategy](predict_proba(model, pool).reshape(-1, TAGS)).reshape(-1, TOKENS)
    counted = MASK[POOL] if has_mask else np.ones_like(MASK[POOL])
    if mode == 'max':
        expected = np.where(counted, of_tokens, 0).max(axis=1)
    else:
        expected = (of_tokens * counted).sum(axis=1) / counted.sum(axis=1)
    np.testing.assert_allclose(learner.history[0].scores, np.sort(expected)[::-1][:7], rtol=1e-4)
    np.testing.assert_allclose(expected[rows], learner.history[0].scores, rtol=1e-4)


def test_models_disagree_by_tokens():
    models = [Tagger(seed=seed) for seed in range(3)]
    learner = started(ActiveLearner(models, 'bald', config=CONFIG, query_size=len(X[POOL])))
    rows = learner.query()
    draws = np.stack([predict_proba(model, X[POOL]).reshape(-1, TAGS) for model in models])
    expected = core.bald(draws).reshape(-1, TOKENS).mean(axis=1)
    np.testing.assert_allclose(learner.history[0].scores, expected[rows], rtol=1e-3, atol=1e-7)


def test_numbers_of_tokens_are_ranked_by_their_variance():
    y = np.stack([X, X**2], axis=-1) / 10
    models = [Tagger(2, seed) for seed in range(2)]
    learner = ActiveLearner(models, 'variance', config=CONFIG, query_size=4)
    learner.start(X[POOL], X[LABELED], y[LABELED])
    rows = learner.query()
    outputs = np.stack([predict(model, X[POOL]) for model in models])
    expected = outputs.var(axis=0).sum(axis=-1).mean(axis=1)
    np.testing.assert_allclose(learner.history[0].scores, expected[rows], rtol=1e-4)


@pytest.mark.parametrize('strategy', ['entropy', 'bald', 'variation_ratio'])
def test_blocks_of_a_pool_of_images_change_no_score(strategy, monkeypatch):
    x = RNG.normal(size=(30, 4, 5, 1)).astype(np.float32)
    y = (x[..., 0] > 0).astype(int) + (x[..., 0] > 1)
    found = []
    for numbers in (2**24, 400):
        monkeypatch.setattr(pool_predictions, '_NUMBERS_PER_BLOCK', numbers)
        models = PixelNet() if strategy == 'entropy' else [PixelNet(), PixelNet()]
        learner = ActiveLearner(models, strategy, config=CONFIG, query_size=20)
        learner.start(x[10:], x[:10], y[:10])
        found.append((learner.query(), learner.history[0].scores))
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_a_custom_strategy_gets_the_probabilities_of_all_tokens():
    shapes = []

    def by_first_token(probabilities, key):
        shapes.append(probabilities.shape)
        return probabilities[:, 0, 0].argsort()

    model = Tagger()
    rows = started(learner_of(by_first_token, model)).query()
    assert shapes == [(ROWS - 10, TOKENS, TAGS)]
    first = predict_proba(model, X[POOL])[:, 0, 0]
    np.testing.assert_array_equal(rows, first.argsort()[:5])


def test_predictions_agree_token_by_token():
    learner = started(learner_of(min_agreement=0.9))
    before = None
    for _ in range(2):
        rows = learner.query()
        predictions = predict(learner.model, X[POOL])
        learner.teach(rows, Y[POOL][rows])
        learner.fit()
        if before is not None:
            np.testing.assert_allclose(
                learner.history[0].agreement, cohen_kappa_score(before.ravel(), predictions.ravel())
            )
        before = predictions


# --- labels -----------------------------------------------------------------------------------


def test_labels_of_tokens_are_kept_on_disk(tmp_path):
    learners = [started(learner_of()), started(learner_of())]
    learners[0].save(tmp_path / 'session')
    for learner in learners:
        rows = learner.query()
        learner.teach(rows[:3], Y[POOL][rows[:3]])
        learner.teach(rows[3:], [None, Y[POOL][rows[4]].tolist()])
    learners[0].close()
    loaded = learner_of()
    loaded.load(tmp_path / 'session', X[POOL], X[LABELED], Y[LABELED])
    assert loaded.labels == learners[1].labels and len(loaded.labels) == 4
    for row, label in loaded.labels.items():
        np.testing.assert_array_equal(label, Y[POOL][row])
    np.testing.assert_array_equal(loaded.query(), learners[1].query())
    loaded.close()


def test_a_session_does_not_become_too_large_to_be_read_again(tmp_path, monkeypatch):
    learner = started(learner_of())
    learner.save(tmp_path / 'session')
    learner.teach([0], [Y[POOL][0]])
    monkeypatch.setattr(label_store, '_MAX_BYTES', 300)
    with pytest.raises(DataError, match='expected at most 300'):
        learner.teach(range(1, 40), Y[POOL][1:40])
    with pytest.raises(DataError, match='expected at most 3'):
        monkeypatch.setattr(label_store, '_MAX_BYTES', 3)
        learner.save(tmp_path / 'other')
    assert list(learner.labels) == [0] and not (tmp_path / 'other').exists()
    learner.close()


def test_without_labels_the_first_rows_are_random_and_classes_may_be_named():
    tags = np.array(['noun', 'verb', 'other'])
    learner = learner_of(classes=tags.tolist())
    learner.start(X[POOL])
    rows = learner.query()
    assert len(set(rows.tolist())) == 5
    learner.teach(rows, tags[X[POOL][rows] % TAGS])
    learner.query()
    assert learner.history[0].status == 'trained'
    assert set(predict(learner.model, X).ravel()) <= set(tags)


def test_a_label_of_another_shape_is_refused():
    learner = started(learner_of())
    with pytest.raises(DataError, match=r'y: got shape \(1, 2\), expected \(rows, 6\)'):
        learner.teach([0], [[1, 2]])
    with pytest.raises(DataError, match='y_labeled'):
        learner_of().start(X[POOL], X[LABELED], Y[LABELED][:, 0])


# --- refusals ---------------------------------------------------------------------------------


def by_features(features, key):
    raise AssertionError


@pytest.mark.parametrize(
    'strategy',
    [*(n for n in STRATEGIES if n not in (*FITTING, 'variance')), DiverseBatches(), by_features],
)
def test_strategies_that_need_features_are_refused_and_others_named(strategy):
    with pytest.raises(ConfigError, match=f'6 elements, expected one of {", ".join(FITTING)}'):
        started(learner_of(strategy))
    with pytest.raises(ConfigError, match='for a model with outputs for each element'):
        learner_of(strategy).start(X[POOL])


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="element_score: got 'sum', expected 'mean' or 'max'"):
        learner_of(element_score='sum')
    with pytest.raises(ConfigError, match='ask_in_notebook: it is for one label a row'):
        started(learner_of()).ask_in_notebook()
    models = [Tagger(seed=0), Tagger(seed=1)]
    with pytest.raises(ConfigError, match='X_val: got validation data for an ensemble'):
        learner_of(model=models).start(X[POOL], X[LABELED], Y[LABELED], X[LABELED], Y[LABELED])
    with pytest.raises(ModelTypeError, match='got models of 6 x 3, 6 x 2 outputs'):
        started(learner_of(model=[Tagger(3), Tagger(2)]))
