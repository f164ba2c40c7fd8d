"""ActiveLearner: which rows are queried, and how labels are stored and learned."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn
from flax import nnx
from sklearn.metrics import cohen_kappa_score

from tests.models_for_tests import DropoutBatchNorm, apply_mlp, init_mlp, mlp
from tests.training.active.made import CONFIG, LABELED, POOL, RNG, VAL, X, Y, same
from thinkml.core import WithDropout, predict_outputs
from thinkml.errors import ConfigError, DataError, ModelTypeError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import from_functions, from_linen, predict, predict_proba
from thinkml.training import CTC, ActiveLearner, Callback, DiverseBatches, ModelTrainer
from thinkml.training.active.retraining import Retraining
from thinkml.training.active.stopping import prediction_agreement
from thinkml.training.active.strategies import STRATEGIES


def learner_of(strategy='margin', model=None, **options):
    options = {'config': CONFIG, 'query_size': 8} | options
    return ActiveLearner(model or mlp(6, 3), strategy, **options)


def experiment(learner, n_iterations=3, **options):
    options = {
        'y_unlabeled': Y[POOL],
        'X_val': X[VAL],
        'y_val': Y[VAL],
        'progress': False,
    } | options
    return learner.train(X[LABELED], Y[LABELED], X[POOL], n_iterations, **options)


def started(learner=None, **options):
    learner = learner or learner_of()
    learner.start(X[POOL], X[LABELED], Y[LABELED], **options)
    return learner


# --- an experiment ------------------------------------------------------------------------------


@pytest.mark.parametrize('strategy', [*STRATEGIES, DiverseBatches('entropy', oversample=3)])
def test_every_strategy_asks_for_different_rows_and_learns(strategy):
    name = strategy if isinstance(strategy, str) else 'diverse'
    targets = X[:, 0] if name == 'variance' else Y
    rngs = nnx.Rngs(0)
    model = DropoutBatchNorm(6, 1 if name == 'variance' else 3, rngs)
    learner = learner_of(strategy, model)
    history = learner.train(
        X[LABELED], targets[LABELED], X[POOL], 3, y_unlabeled=targets[POOL],
        X_val=X[VAL], y_val=targets[VAL], progress=False,
    )  # fmt: skip
    asked = np.concatenate([query.indices for query in history])
    assert len(np.unique(asked)) == 24 and asked.min() >= 0 and asked.max() < 170
    assert [query.num_labels for query in history] == [38, 46, 54]
    assert history.start[0] == 30
    assert {query.status for query in history} == {'trained'}
    assert learner.labels == {int(row): targets[POOL][row].item() for row in asked}
    assert all(query.seconds > 0 for query in history)


def test_the_history_is_that_of_the_loop_written_by_hand():
    history = experiment(learner_of('margin'))
    labeled, pool, model = list(range(30)), np.arange(30, 200), None
    for query in (None, *history):
        if query is not None:
            proba = np.sort(predict_proba(model, X[pool]), axis=1)
            margins = proba[:, -1] - proba[:, -2]
            left = np.array([row not in labeled for row in pool])
            expected = np.argsort(np.where(left, margins, np.inf), kind='stable')[:8]
            assert query.indices.tolist() == expected.tolist()
            np.testing.assert_allclose(query.scores, 1 - margins[expected], atol=1e-6)
            labeled += pool[expected].tolist()
        model = mlp(6, 3)
        ModelTrainer(CONFIG).train(model, X[labeled], Y[labeled], progress=False)
        found = ModelEvaluator().evaluate(model, X[VAL], Y[VAL], ['accuracy'])['accuracy']
        metrics = history.start[1] if query is None else query.metrics
        assert metrics['val_accuracy'] == found


@pytest.mark.parametrize('strategy', ['margin', 'badge', 'typiclust', 'random', 'bald'])
def test_same_seed_same_bits(strategy):
    def run(seed):
        return experiment(learner_of(strategy, DropoutBatchNorm(6, 3, nnx.Rngs(0)), seed=seed))

    assert same(run(0), run(0))
    if strategy == 'random':
        assert not same(run(0), run(1))


def test_warm_goes_on_from_the_last_weights():
    model = mlp(6, 3)
    warm = experiment(learner_of(model=model), retrain='warm')
    assert len(record_of(model).runs) == 4
    cold = experiment(learner_of())
    assert warm.start == cold.start and warm[-1].metrics['loss'] < cold[-1].metrics['loss']


def test_a_reset_leaves_what_was_known_of_the_model_before():
    model = mlp(6, 3)
    ModelTrainer(CONFIG).train(model, X[LABELED], Y[LABELED], progress=False)
    with pytest.warns(ThinkMLWarning, match='model: it was trained before'):
        experiment(learner_of(model=model))
    assert len(record_of(model).runs) == 2  # the one before, and the last


def test_the_baseline_is_the_same_with_random_rows():
    history = experiment(learner_of('margin'), baseline=True)
    alone = experiment(learner_of('margin'))
    at_random = experiment(learner_of('random'))
    assert same(history, alone) and same(history.baseline, at_random)
    assert history.baseline.start == history.start


def test_the_area_is_the_mean_height_of_the_curve():
    history = experiment(learner_of())
    counts, values = history.learning_curve('val_accuracy')
    assert counts.tolist() == [30, 38, 46, 54]
    by_hand = (values[0] / 2 + values[1] + values[2] + values[3] / 2) / 3
    assert history.area('val_accuracy') == pytest.approx(by_hand)
    with pytest.raises(
        ConfigError, match=r"metric: got 'val_acuracy'.*Did you mean 'val_accuracy'"
    ):
        history.area('val_acuracy')


@pytest.mark.parametrize('strategy', ['margin', 'core_set', 'badge', 'typiclust', 'bald'])
def test_rounds_compile_nothing_until_the_labels_have_doubled(strategy, count_compiles):
    learner = started(learner_of(strategy, DropoutBatchNorm(6, 3, nnx.Rngs(0))))

    def rounds(count):
        for _ in range(count):
            rows = learner.query()
            learner.teach(rows, Y[POOL][rows])

    rounds(2)
    assert count_compiles(rounds, 2) == 0  # 46 and 54 labels


def test_rounds_of_fewer_labels_than_a_batch_compile_nothing(count_compiles):
    learner = learner_of(config=dataclasses.replace(CONFIG, batch_size=256))
    learner.start(X[POOL])

    def rounds(count):
        for _ in range(count):
            rows = learner.query()
            learner.teach(rows, Y[POOL][rows])

    rounds(2)
    assert count_compiles(rounds, 5) == 0  # 16 to 48 labels


def test_fewer_labels_than_a_batch_are_learned_as_one_batch():
    config = dataclasses.replace(CONFIG, batch_size=256)
    learner = started(learner_of(config=config))
    learner.fit()
    model = mlp(6, 3)
    ModelTrainer(config).train(model, X[LABELED], Y[LABELED], progress=False)
    np.testing.assert_allclose(predict_proba(learner.model, X), predict_proba(model, X), rtol=1e-5)


def test_rare_classes_weigh_more_and_what_else_a_training_is_told():
    learner = learner_of(class_weights='balanced', loss_fn='focal')
    learner.start(X[POOL], X[LABELED], Y[LABELED])
    learner.fit()
    model = mlp(6, 3)
    ModelTrainer(CONFIG).train(
        model, X[LABELED], Y[LABELED], class_weights='balanced', loss_fn='focal', progress=False
    )
    np.testing.assert_array_equal(predict_proba(learner.model, X), predict_proba(model, X))


def test_labels_in_an_array_with_room_are_learned_as_in_one_of_their_size():
    learner = started(learner_of(config=dataclasses.replace(CONFIG, validation_split=0.2)))
    learner.fit()
    model = mlp(6, 3)
    config = dataclasses.replace(CONFIG, validation_split=0.2)
    expected = ModelTrainer(config).train(model, X[LABELED], Y[LABELED], progress=False)
    for name, values in dict(record_of(learner.model).runs[-1]).items():
        # Evaluation of another padded size is another program, which rounds sums differently.
        tolerance = 1e-6 if name.startswith('val_') else 0
        np.testing.assert_allclose(values, expected[name], rtol=tolerance, err_msg=name)
    np.testing.assert_array_equal(predict_proba(learner.model, X), predict_proba(model, X))


# --- labels ---------------------------------------------------------------------------------


def test_an_oracle_is_asked_and_may_abstain():
    asked = []

    def oracle(rows, indices):
        np.testing.assert_array_equal(rows, X[POOL][indices])
        asked.extend(indices)
        return [None if index % 3 == 0 else int(Y[POOL][index]) for index in indices]

    learner = learner_of()
    history = learner.train(X[LABELED], Y[LABELED], X[POOL], 4, oracle=oracle, progress=False)
    assert len(asked) == len(set(asked)) == 32
    assert set(learner.labels) == {index for index in asked if index % 3}
    assert history[-1].num_labels == 30 + len(learner.labels)
    assert not len(learner.waiting)


def test_numbers_that_are_nan_are_abstentions():
    def oracle(rows, indices):
        return np.where(indices % 2 == 0, np.nan, X[POOL][indices, 0])

    learner = learner_of('core_set', mlp(6, 1))
    learner.train(X[LABELED], X[LABELED][:, 0], X[POOL], 2, oracle=oracle, progress=False)
    assert learner.labels and all(row % 2 for row in learner.labels)


@pytest.mark.parametrize('strategy', ['margin', 'core_set', 'badge', 'random'])
def test_without_an_oracle_no_label_is_invented(strategy):
    model = mlp(6, 3)
    learner = learner_of(strategy, model)
    with pytest.warns(ThinkMLWarning, match='nobody labels: the model was trained on 30 labels'):
        history = learner.train(X[LABELED], Y[LABELED], X[POOL], n_iterations=5, progress=False)
    assert [query.status for query in history] == ['awaiting_labels'] * 5
    rows = np.concatenate([query.indices for query in history])
    assert len(np.unique(rows)) == 40 and learner.labels == {}
    assert np.array_equal(np.sort(learner.waiting), np.sort(rows))
    assert len(record_of(model).runs) == 1 and history.start[0] == 30
    learner.teach(history[1].indices, Y[POOL][history[1].indices])
    assert [query.status for query in history][:3] == [
        'awaiting_labels',
        'labeled',
        'awaiting_labels',
    ]
    learner.fit()
    assert history[1].status == 'trained' and history[1].num_labels == 38
    assert not set(learner.query()) & set(rows)


def test_planned_rows_are_not_alike():
    pool = np.repeat(X[POOL][:17], 10, axis=0)  # ten copies of each
    learner = learner_of('margin', query_size=2)
    with pytest.warns(ThinkMLWarning, match='nobody labels'):
        history = learner.train(X[LABELED], Y[LABELED], pool, n_iterations=5, progress=False)
    rows = np.concatenate([query.indices for query in history])
    assert len(np.unique(rows // 10)) == 10


# --- step by step -------------------------------------------------------------------------------


def test_asking_and_teaching_is_what_train_does():
    history = experiment(learner_of())
    learner = started(X_val=X[VAL], y_val=Y[VAL])
    for _ in range(3):
        rows = learner.query()
        learner.teach(rows, Y[POOL][rows])
    learner.fit()
    assert same(learner.history, history) and learner.history.start == history.start


def test_rows_are_asked_for_once_and_answers_may_come_in_any_order():
    learner = started()
    first, second = learner.query(), learner.query(5)
    assert len(first) == 8 and len(second) == 5 and not set(first) & set(second)
    learner.teach(second[::-1], Y[POOL][second[::-1]])
    assert learner.history[1].status == 'labeled'
    learner.teach(first[:3], Y[POOL][first[:3]])
    learner.skip(first[3:])
    assert [query.status for query in learner.history] == ['labeled', 'labeled']
    assert not set(learner.query()) & {*first, *second}


def test_labels_can_be_changed_and_taken_back():
    learner = started()
    rows = learner.query(4)
    learner.teach(rows, [0, 1, 2, 0])
    learner.update_label(rows[0], 2)
    learner.skip([rows[1]])
    assert learner.labels == {int(rows[0]): 2, int(rows[2]): 2, int(rows[3]): 0}
    with pytest.raises(DataError, match=f'row {rows[1]} has no label yet'):
        learner.update_label(rows[1], 0)


def test_a_label_is_learned_anew_after_it_was_changed():
    def after(labels):
        learner = started()
        learner.teach([0, 1, 2], [0, 1, 2])
        learner.fit()
        learner.teach([0, 1, 2], labels)
        return learner.fit()

    assert after([0, 1, 2]) != after([2, 2, 1])


@pytest.mark.parametrize('strategy', ['core_set', 'typiclust'])
def test_rows_that_wait_for_labels_have_no_twin_asked_for(strategy):
    pool = np.repeat(X[POOL], 2, axis=0)
    for labeled in ((X[LABELED], Y[LABELED]), (None, None)):
        learner = learner_of(strategy)
        learner.start(pool, *labeled)
        rows = np.concatenate([learner.query(), learner.query()])
        assert len(np.unique(rows // 2)) == 16


def test_one_label_and_no_labels_can_be_taught():
    learner = started()
    learner.teach(3, 1)
    learner.teach([], [])
    learner.teach(np.zeros(0, int), Y[:0])
    assert learner.labels == {3: 1}


def test_what_comes_during_a_training_is_learned_by_the_next(monkeypatch):
    learner = started()
    train, seen = Retraining.fit, []

    def while_one_teaches(self, x, y):
        seen.append(len(y))
        if len(seen) == 1:
            learner.teach([0], [Y[POOL][0]])
        return train(self, x, y)

    monkeypatch.setattr(Retraining, 'fit', while_one_teaches)
    learner.fit()
    learner.query()
    assert seen == [30, 31]


def test_a_label_that_is_corrected_does_not_change_what_was_measured():
    learner = started()
    for _ in range(2):
        rows = learner.query()
        learner.teach(rows, Y[POOL][rows])
    learner.fit()
    before = learner.history.learning_curve('loss')
    learner.update_label(learner.history[0].indices[0], 0)
    assert learner.history[0].status == 'trained'
    learner.fit()
    np.testing.assert_array_equal(learner.history.learning_curve('loss'), before)


class CtrlC(Callback):
    """Raises Ctrl-C in the last epoch of one training."""

    def __init__(self, training):
        self.left = CONFIG.epochs * training

    def on_epoch_end(self, run):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_all_of_it_and_keeps_the_labels():
    config = dataclasses.replace(CONFIG, callbacks=[CtrlC(2)])
    learner = learner_of(config=config)
    with pytest.raises(KeyboardInterrupt):
        experiment(learner)
    assert len(learner.history) == 1 and len(learner.labels) == 8
    learner.query()
    assert learner.history[0].num_labels == 38


def test_ctrl_c_while_callbacks_end_ends_all_of_it():
    trainings = []

    class Late(Callback):
        def on_train_end(self, run):
            trainings.append(run)
            if len(trainings) == 2:
                signal.raise_signal(signal.SIGINT)

    learner = learner_of(config=dataclasses.replace(CONFIG, callbacks=[Late()]))
    with pytest.raises(KeyboardInterrupt):
        experiment(learner)
    assert len(trainings) == 2 and len(learner.labels) == 8


# --- start and end ------------------------------------------------------------------------------


def test_a_cold_start_asks_for_typical_rows_until_there_are_classes():
    learner = learner_of('margin')
    learner.start(X[POOL])
    rows = learner.query(6)
    assert len(np.unique(rows)) == 6 and learner.history.start is None
    learner.teach(rows, np.zeros(6, int))
    assert learner.fit() == {}  # one class
    rows = learner.query(6)
    learner.teach(rows, np.arange(6) % 3)
    assert 'accuracy' in learner.fit()
    assert learner.history[-1].num_labels == 12


def test_a_model_that_was_trained_before_says_itself_what_to_ask_for():
    model = mlp(6, 3)
    ModelTrainer(CONFIG).train(model, X[LABELED], Y[LABELED], progress=False)
    learner = learner_of('margin', model)
    learner.start(X[POOL])
    proba = np.sort(predict_proba(model, X[POOL]), axis=1)
    expected = np.argsort(proba[:, -1] - proba[:, -2], kind='stable')[:8]
    assert learner.query().tolist() == expected.tolist()


def test_labels_that_were_all_taken_back_are_a_cold_start(tmp_path):
    learner = learner_of()
    learner.start(X[POOL])
    learner.save(tmp_path / 'session')
    learner.teach([0, 1, 2], [0, 1, 2])
    learner.fit()
    learner.skip([0, 1, 2])
    learner.close()
    again = learner_of()
    again.load(tmp_path / 'session', X[POOL])
    assert len(again.query()) == 8


def test_typical_rows_come_from_different_clusters():
    centres = np.eye(6)[:5] * 20
    blobs = np.repeat(centres, 40, axis=0) + np.random.default_rng(0).normal(size=(200, 6))
    found = []
    for seed in range(6):
        learner = learner_of('margin', seed=seed)
        learner.start(blobs)
        found.append(len(set(learner.query(5) // 40)))
    assert np.mean(found) >= 4.5  # at random 3.4, with a standard error of 0.3


def test_a_cold_start_without_features_is_random():
    model = from_functions(
        lambda key, x: {'w': np.ones((6, 3))}, lambda p, x: jax.numpy.tanh(x @ p['w'])
    )
    learner = learner_of('margin', model)
    learner.start(X[POOL])
    assert len(set(learner.query(6))) == 6


def test_texts_need_all_classes_or_their_names():
    names = np.array(['ant', 'bee', 'cat'])[Y]
    learner = learner_of()
    learner.start(X[POOL], X[LABELED][:4], ['ant', 'bee', 'ant', 'bee'])
    with pytest.warns(ThinkMLWarning, match='got 2 different labels so far, but the model has 3'):
        rows = learner.query()
    learner.teach(rows, names[POOL][rows])
    named = learner_of(classes=['cat', 'ant', 'bee'])
    named.start(X[POOL], X[LABELED][:4], ['ant', 'bee', 'ant', 'bee'])
    assert named.fit()
    assert set(predict(named.model, X)) <= {'ant', 'bee', 'cat'}
    with pytest.raises(DataError, match=r"labels the model was not trained on: \['dog'\]"):
        named.teach([3, 4], ['ant', 'dog'])
    assert named.labels == {}


def test_a_plan_without_features_spreads_over_the_outputs():
    model = nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), nnx.tanh)
    learner = learner_of('margin', model, query_size=2)
    pool = np.repeat(X[POOL][:17], 10, axis=0)
    with pytest.warns(ThinkMLWarning, match='nobody labels'):
        history = learner.train(X[LABELED], Y[LABELED], pool, n_iterations=5, progress=False)
    rows = np.concatenate([query.indices for query in history])
    assert len(np.unique(rows // 10)) == 10


def test_a_plan_for_a_small_pool_takes_all_of_it():
    learner = learner_of()
    with pytest.warns(ThinkMLWarning, match='11 rows were chosen'):
        history = learner.train(X[LABELED], Y[LABELED], X[30:41], progress=False)
    assert [len(query.indices) for query in history] == [8, 3]
    assert history.stop_reason == 'all rows of the pool were queried'


def test_the_pool_may_end():
    history = experiment(learner_of(query_size=70), 5)
    assert [len(query.indices) for query in history] == [70, 70, 30]
    assert history.stop_reason == 'all rows of the pool were queried'
    learner = started(learner_of(query_size=200))
    assert len(learner.query()) == 170 and len(learner.query()) == 0


def test_a_budget_ends_it():
    history = experiment(learner_of(max_labels=20), 10)
    assert [len(query.indices) for query in history] == [8, 8, 4]
    assert history.stop_reason == '20 labels were given (max_labels=20)'


def test_no_gain_ends_it():
    history = experiment(learner_of(patience=2), 15)
    values = history.learning_curve('val_accuracy')[1]
    best = int(np.argmax(values))
    assert (
        len(values) - 1 - best == 2 and 'has not improved for 2 iterations' in history.stop_reason
    )


def test_who_asks_and_teaches_is_told_when_to_stop():
    history = experiment(learner_of(patience=2), 15)
    learner = started(learner_of(patience=2), X_val=X[VAL], y_val=Y[VAL])
    while learner.history.stop_reason is None:
        rows = learner.query()
        learner.teach(rows, Y[POOL][rows])
        learner.fit()
    assert same(learner.history, history)
    assert learner.history.stop_reason == history.stop_reason


def test_patience_waits_for_the_first_model():
    learner = learner_of(patience=1, max_labels=16, classes=[0, 1, 2])
    history = learner.train(
        X_unlabeled=X[POOL], oracle=lambda rows, indices: np.zeros(len(rows), int),
        X_val=X[VAL], y_val=Y[VAL], progress=False,
    )  # fmt: skip
    assert history.stop_reason == '16 labels were given (max_labels=16)'


@pytest.mark.parametrize('labels', [lambda y: y, lambda y: np.array(['a', 'b', 'c'])[y]])
def test_agreement_is_cohens_kappa(labels):
    one, other = RNG.integers(0, 3, (2, 200))
    other[:150] = one[:150]
    expected = cohen_kappa_score(one, other)
    assert prediction_agreement(labels(one), labels(other)) == pytest.approx(expected)
    pairs = np.stack([one > 0, one > 1], axis=1), np.stack([other > 0, other > 1], axis=1)
    assert prediction_agreement(*pairs) == pytest.approx(expected)
    assert prediction_agreement(one * 0, one * 0) == 1


def test_predictions_that_are_stable_end_it():
    history = experiment(learner_of(min_agreement=0.5), 15)
    assert 'predictions are stable' in history.stop_reason
    assert np.isfinite([query.agreement for query in history]).all()
    last = [query.agreement for query in history[-3:]]
    assert np.mean(last) >= 0.5


# --- models -------------------------------------------------------------------------------------


def linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
            return nn.Dense(3)(x)

    return from_linen(Net())


@pytest.mark.parametrize('strategy', ['margin', 'badge', 'bald'])
def test_linen_models(strategy):
    history = experiment(learner_of(strategy, linen_model()))
    assert history[-1].num_labels == 54


@pytest.mark.parametrize('strategy', ['entropy', 'core_set'])
def test_functions(strategy):
    history = experiment(learner_of(strategy, from_functions(init_mlp, apply_mlp)))
    assert history[-1].num_labels == 54


def test_an_ensemble_predicts_by_its_mean_and_disagrees():
    models = [mlp(6, 3, seed=seed) for seed in range(3)]
    learner = learner_of('variation_ratio', models)
    history = experiment(learner)
    mean = np.mean([predict_proba(model, X) for model in models], axis=0)
    assert history[-1].metrics['val_accuracy'] == np.mean(mean[VAL].argmax(1) == Y[VAL])
    rows = learner.query()
    votes = np.stack([predict(model, X[POOL]) for model in models])
    counts = np.array([np.bincount(vote, minlength=3).max() for vote in votes.T])
    left = np.setdiff1d(np.arange(170), [*learner.labels])
    assert counts[rows].max() <= np.sort(counts[left])[8]


def test_passes_with_dropout_keep_to_the_statistics():
    model = DropoutBatchNorm(6, 3, nnx.Rngs(0))
    ModelTrainer(CONFIG).train(model, X, Y, progress=False)
    draws = predict_outputs(WithDropout(model, 400, jax.random.key(0)), X[:20])
    draws = draws.reshape(20, 400, 3)
    assert draws.std(axis=1).min() > 0.01
    alone = predict_outputs(WithDropout(model, 400, jax.random.key(0)), X[:1]).reshape(400, 3)
    np.testing.assert_allclose(alone, draws[0], atol=1e-5)  # no batch statistics
    model.eval()
    np.testing.assert_allclose(draws.mean(axis=1), model(X[:20]), atol=0.2)


def test_several_labels_a_row():
    several = np.stack([X[:, 0] > 0, X[:, 1] > 0.5], axis=1).astype(int)
    learner = learner_of('uncertainty', mlp(6, 2))
    history = learner.train(
        X[LABELED], several[LABELED], X[POOL], 2, y_unlabeled=several[POOL],
        X_val=X[VAL], y_val=several[VAL], progress=False,
    )  # fmt: skip
    assert 'val_f1' in history[-1].metrics
    proba = predict_proba(learner.model, X[POOL])
    rows = learner.query(1)
    unsure = np.minimum(proba, 1 - proba).mean(1)
    unsure[[*learner.labels]] = -1
    assert rows[0] == unsure.argmax()


def sure_learner(strategy, kernels, y):
    """Returns models that multiply the one column by their kernels, and a pool of certain rows."""
    models = [nnx.Linear(1, len(kernel), use_bias=False, rngs=nnx.Rngs(0)) for kernel in kernels]
    for model, kernel in zip(models, kernels, strict=True):
        model.kernel[...] = jnp.array([kernel])
    config = dataclasses.replace(CONFIG, epochs=1, optimizer='sgd', learning_rate=1e-30)
    learner = learner_of(strategy, models if len(models) > 1 else models[0], config=config)
    pool = np.float32([[600], [90], [20], [60], [300], [23], [18]])
    learner.start(pool, np.float32(np.arange(len(y))[:, None]), y)
    return learner


BY_LOGIT = [6, 2, 5, 3, 1, 4, 0]
SURE = [
    ('uncertainty', [[1.0]]),
    ('uncertainty', [[-1.0, 1.0, 0.0]]),
    ('uncertainty', [[1.0], [1.5]]),
    ('margin', [[0.0, 1.0]]),
    ('margin', [[-1.0, 1.0, 0.0]]),
    ('entropy', [[1.0]]),
    ('entropy', [[-1.0, 1.0, 0.0]]),
    ('expected_gradient_length', [[-1.0, 1.0, 0.0]]),
    ('bald', [[1.0], [1.5]]),
    ('bald', [[0.0, 1.0, 0.0], [0.5, 2.0, 0.5]]),
    (DiverseBatches('margin', oversample=1), [[1.0]]),
]


@pytest.mark.parametrize(('strategy', 'kernels'), SURE)
def test_rows_of_which_models_are_sure_rank_by_their_logits(strategy, kernels):
    learner = sure_learner(strategy, kernels, np.arange(max(2, len(kernels[0]))))
    assert learner.query(7).tolist() == BY_LOGIT


@pytest.mark.parametrize('strategy', ['uncertainty', 'margin', 'entropy'])
def test_rows_of_several_labels_rank_by_their_logits(strategy):
    learner = sure_learner(strategy, [[1.0, -2.0]], np.array([[0, 1], [1, 1]]))
    assert learner.query(7).tolist() == BY_LOGIT


def own_strategy(probabilities, key):
    return np.argsort(probabilities[:, 0])


class TestOwn:
    def test_it_is_given_the_rows_that_can_be_asked_for(self):
        learner = learner_of(own_strategy)
        history = experiment(learner)
        assert len(np.unique(np.concatenate([query.indices for query in history]))) == 24
        assert np.isnan(history[0].scores).all()

    def test_features(self):
        shapes = []

        def strategy(features, key):
            shapes.append(features.shape)
            return np.arange(len(features))

        history = experiment(learner_of(strategy))
        assert shapes == [(170, 16), (162, 16), (154, 16)]
        assert history[1].indices.tolist() == list(range(8, 16))

    def test_what_it_returns_is_checked(self):
        with pytest.raises(DataError, match='strategy: <lambda> returned float'):
            experiment(learner_of(lambda probabilities, key: probabilities[:, 0]))


# --- data ---------------------------------------------------------------------------------------


def test_a_pool_on_disk_and_one_in_batches_are_asked_for_the_same_rows(tmp_path):
    path = tmp_path / 'pool.npy'
    np.save(path, X[POOL])
    expected = experiment(learner_of())

    def batches():
        yield from np.array_split(X[POOL], 7)

    for pool in (np.load(path, mmap_mode='r'), batches):
        history = learner_of().train(
            X[LABELED], Y[LABELED], pool, 3, y_unlabeled=Y[POOL], X_val=X[VAL], y_val=Y[VAL],
            progress=False,
        )  # fmt: skip
        assert same(history, expected)


def test_frames_and_several_inputs():
    import pandas

    frame = pandas.DataFrame(X, columns=list('abcdef'))
    labels = Y.tolist()
    learner = learner_of()
    learner.train(
        frame[LABELED], labels[LABELED], frame[list('fedcba')][POOL], 1, y_unlabeled=labels[POOL],
        progress=False,
    )  # fmt: skip
    expected = learner_of()
    expected.train(X[LABELED], Y[LABELED], X[POOL], 1, y_unlabeled=Y[POOL], progress=False)
    assert same(learner.history, expected.history)
    np.testing.assert_array_equal(
        predict(learner.model, frame[list('bacdef')]), predict(expected.model, X)
    )


# --- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'strategy': 'uncertanty'}, "strategy: got 'uncertanty'.*Did you mean 'uncertainty'"),
        ({'strategy': 3}, 'strategy: got 3, expected a name'),
        ({'strategy': lambda x: x}, 'a function of 1 arguments'),
        ({'query_size': 0}, 'query_size: got 0'),
        ({'loss_fn': CTC(blank_id=1)}, r'loss_fn: got CTC\(blank_id=1\), expected a loss of cl'),
        ({'num_draws': 1}, 'num_draws: got 1'),
        ({'max_labels': 0}, 'max_labels: got 0'),
        ({'min_agreement': 2}, 'min_agreement: got 2'),
        ({'config': {'epochs': 2}}, 'config: got dict'),
        ({'model': []}, 'model: got no model'),
    ],
)
def test_settings_are_checked(options, match):
    with pytest.raises(ConfigError, match=match):
        ActiveLearner(**{'model': mlp(6, 3)} | options)


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ({'n_iterations': 0}, ConfigError, 'n_iterations: got 0'),
        ({'oracle': print}, ConfigError, 'oracle: got it together with y_unlabeled'),
        ({'y_unlabeled': None, 'baseline': True}, ConfigError, 'baseline: got True without'),
        ({'y_unlabeled': Y[:5]}, DataError, 'X_unlabeled with 170 rows.*y_unlabeled with 5'),
        ({'retrain': 'cold'}, ConfigError, "retrain: got 'cold'"),
        ({'X_val': None}, DataError, 'X_val: got None together with y_val'),
        (
            {'y_unlabeled': None, 'oracle': [1, 2]},
            ConfigError,
            'oracle: got list, expected a function',
        ),
        (
            {'y_unlabeled': None, 'oracle': lambda rows, indices: [0, 1]},
            DataError,
            'oracle: got 2 labels for 8 rows',
        ),
        (
            {'y_unlabeled': None, 'oracle': lambda rows, indices: None},
            DataError,
            'oracle: got None',
        ),
        ({'y_unlabeled': ['a'] * 170}, DataError, 'y_unlabeled: got text and numbers'),
    ],
)
def test_arguments_of_train_are_checked(arguments, error, match):
    with pytest.raises(error, match=match):
        experiment(learner_of(), **{'n_iterations': 1} | arguments)


@pytest.mark.parametrize(
    ('options', 'arguments', 'error', 'match'),
    [
        ({'metrics': ['acuracy']}, {}, ConfigError, "metrics: got 'acuracy'"),
        ({'metrics': ['rmse']}, {}, ConfigError, "metrics: got 'rmse'"),
        (
            {'patience': 2}, {'X_val': None, 'y_val': None}, ConfigError,
            'patience: got 2 without X_val',
        ),
        ({'model': [mlp(6, 3), mlp(6, 4)]}, {}, ModelTypeError, 'got models of 3, 4 outputs'),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_told_before_anything_is_trained(
    options, arguments, error, match
):
    model = mlp(6, 3)
    learner = learner_of(**{'model': model} | options)
    with pytest.raises(error, match=match):
        experiment(learner, **arguments)
    assert record_of(model).runs == []


def test_agreement_is_not_of_numbers():
    with pytest.raises(ConfigError, match=r'min_agreement: got 0\.9 for regression'):
        learner_of('core_set', mlp(6, 1), min_agreement=0.9).train(
            X[LABELED], X[LABELED][:, 0], X[POOL], y_unlabeled=X[POOL][:, 0]
        )


def test_what_a_strategy_needs_is_told_before_anything_is_trained():
    model = mlp(6, 3)
    with pytest.raises(ModelTypeError, match='it has no dropout'):
        experiment(learner_of('bald', model))
    with pytest.raises(ConfigError, match=r"got 'margin' for regression.*variance"):
        learner_of('margin', mlp(6, 1)).train(
            X[LABELED], X[LABELED][:, 0], X[POOL], y_unlabeled=X[POOL][:, 0]
        )
    no_dense = nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), nnx.tanh)
    with pytest.raises(ModelTypeError, match='no features before'):
        experiment(learner_of('core_set', no_dense))
    assert record_of(model).runs == []


@pytest.mark.parametrize(
    ('indices', 'labels', 'match'),
    [
        ([170], [0], 'got row 170, expected 0 to 169'),
        ([-1], [0], 'got row -1'),
        ([1, 1], [0, 0], 'got a row twice'),
        ([0.5], [0], 'got float64'),
        ([1, 2], [0], 'got 1 labels for 2 rows'),
        ([1], [7], r'labels the model was not trained on: \[7\]'),
        ([1], ['a'], 'y: got dtype'),
        ([1], 'a', 'y: got dtype'),
        ([1, 2], ['a', 1], 'y: got text and numbers'),
        ([1], [np.inf], 'y: got 0 NaN and 1 infinite'),
    ],
)
def test_labels_are_checked_and_none_is_taken(indices, labels, match):
    learner = started()
    learner.fit()
    with pytest.raises(DataError, match=match):
        learner.teach(indices, labels)
    assert learner.labels == {}


@pytest.mark.parametrize(
    ('arguments', 'options', 'match'),
    [
        ({'y_labeled': np.arange(30) % 4}, {}, 'y_labeled: got 4 different labels'),
        ({'y_labeled': ['a'] * 30}, {'classes': ['b', 'c', 'd']}, 'y_labeled: got labels the mod'),
        ({'y_val': Y[:5]}, {}, 'X_val with 100 rows.*y_val with 5'),
        ({'y_val': ['a'] * 100}, {}, 'y_val: got dtype'),
        ({'y_val': Y[VAL] + 1}, {}, 'y_val: got labels the model was not trained on'),
    ],
)
def test_labels_of_the_beginning_are_checked_at_the_start(arguments, options, match):
    arguments = {
        'X_labeled': X[LABELED],
        'y_labeled': Y[LABELED],
        'X_val': X[VAL],
        'y_val': Y[VAL],
    } | arguments
    with pytest.raises(DataError, match=match):
        learner_of(**options).start(X[POOL], **arguments)


def test_a_label_is_checked_by_those_of_the_beginning_before_the_first_training():
    learner = started()
    with pytest.raises(DataError, match=r'labels the model was not trained on: \[7\]'):
        learner.teach([1], [7])


@pytest.mark.parametrize('strategy', ['margin', 'badge'])
def test_a_model_that_diverged_is_told(strategy):
    learner = started(learner_of(strategy))
    learner.fit()
    kernel = learner.model.layers[0].kernel
    kernel[...] = kernel[...] * np.nan
    with pytest.raises(DataError, match='model: it returns NaN or infinite values for the pool'):
        learner.query()


@pytest.mark.parametrize('wrong', [3, [0, 1], 0.5])
def test_a_label_must_be_like_those_before_also_at_a_cold_start(wrong):
    learner = learner_of()
    learner.start(X[POOL])
    learner.teach([0], ['a'])
    with pytest.raises(DataError, match=r'^y: '):
        learner.teach([1], [wrong])
    assert learner.labels == {0: 'a'}
    learner.update_label(0, wrong)  # all labels may change
    learner.start(X[POOL], X[LABELED], np.array(['a', 'b', 'c'])[Y[LABELED]])
    with pytest.raises(DataError, match=r'^y: '):
        learner.teach([1], [wrong])


def test_labels_in_a_column_and_flat_ones_are_the_same():
    learner = learner_of()
    history = learner.train(
        X[LABELED], Y[LABELED][:, None], X[POOL], 2,
        oracle=lambda rows, indices: Y[POOL][indices], progress=False,
    )  # fmt: skip
    expected = learner_of()
    expected.train(X[LABELED], Y[LABELED], X[POOL], 2, y_unlabeled=Y[POOL], progress=False)
    assert same(history, expected.history)


def test_there_must_be_a_pool_first():
    with pytest.raises(DataError, match='query: there is no pool yet'):
        learner_of().query()
    with pytest.raises(DataError, match='X_unlabeled: got None'):
        learner_of().train(X[LABELED], Y[LABELED])


# --- labels in other shapes, or missing --------------------------------------------------------


@pytest.mark.parametrize(
    'label',
    [
        np.array([[1]]), [[1]], [[[1]]], [np.array(1)], [np.array([1])], [jax.numpy.array([1])],
        np.array([[1]], object), pd.DataFrame({'label': [1]}),
    ],
    ids=lambda label: f'{type(label).__name__} {np.shape(label)}',
)  # fmt: skip
@pytest.mark.parametrize('first', [Y, Y[:, None], None], ids=['rows', 'column', 'none'])
def test_a_label_in_a_column_is_that_label(label, first):
    learner = learner_of()
    learner.start(X[POOL], *([] if first is None else [X[LABELED], first[LABELED]]))
    learner.teach([0], label)
    learner.teach([1], [0])
    learner.update_label(1, [2])
    learner.teach([2, 3], [[0], 1])
    assert learner.labels == {0: 1, 1: 2, 2: 0, 3: 1}
    assert len(learner.query()) == 8
    assert learner.fit()


def test_columns_of_text_and_of_numbers_are_labels_too():
    text = np.array(['ant', 'bee', 'cat'])[Y]
    learner = learner_of()
    learner.start(X[POOL], X[LABELED], text[LABELED])
    learner.teach([0], text[POOL][[0], None])
    learner.teach([1], ['ant'])
    assert set(map(type, learner.labels.values())) == {str} and learner.fit()
    learner = learner_of('random', mlp(6, 1))
    learner.start(X[POOL], X[LABELED], X[LABELED, :1])
    learner.teach([0], X[POOL, :1][[0]])
    learner.teach([1], [0.5])
    assert set(map(type, learner.labels.values())) == {float} and learner.fit()


def test_rows_of_several_labels_may_be_jax_arrays():
    several = (X[:, :3] > 0).astype(int)
    learner = learner_of()
    learner.start(X[POOL], X[LABELED], several[LABELED])
    learner.teach([0, 1], [jax.numpy.array([1, 0, 1]), [0, 0, 1]])
    assert learner.labels == {0: [1, 0, 1], 1: [0, 0, 1]} and learner.fit()


@pytest.mark.parametrize('nothing', [None, float('nan'), [None]], ids=str)
def test_an_oracle_that_answers_nothing_teaches_nothing(nothing, monkeypatch):
    trainings = []
    fit = Retraining.fit
    monkeypatch.setattr(Retraining, 'fit', lambda *args: trainings.append(1) or fit(*args))
    learner = learner_of(patience=1, min_agreement=0.5)
    history = experiment(learner, 4, y_unlabeled=None, oracle=lambda X, rows: [nothing] * len(rows))
    assert [query.status for query in history] == ['skipped'] * 4
    assert [(query.num_labels, query.metrics) for query in history] == [(None, {})] * 4
    assert history.stop_reason is None and len(trainings) == 1
    assert history.learning_curve('val_accuracy')[0].tolist() == [30]
    assert str(history).count('8 rows, skipped') == 4


def test_one_answer_makes_an_iteration_of_labelled_rows():
    def oracle(X, rows):
        asked.append(rows)
        return [None] * 8 if len(asked) == 2 else [*Y[POOL][rows[:1]], *[None] * 7]

    asked: list = []
    history = experiment(learner_of(), 3, y_unlabeled=None, oracle=oracle)
    assert [query.status for query in history] == ['trained', 'skipped', 'trained']
    assert [query.num_labels for query in history] == [31, None, 32]


def test_a_skipped_row_that_is_labelled_later_is_learned():
    learner = started()
    rows = learner.query()
    learner.skip(rows)
    assert learner.history[0].status == 'skipped'
    learner.query()
    learner.teach(rows[:1], Y[POOL][rows[:1]])
    assert learner.history[0].status == 'labeled'
    learner.fit()
    assert learner.history[0].status == 'trained' and learner.history[0].num_labels == 31


def test_an_oracle_that_returns_none_is_told_what_is_expected():
    with pytest.raises(DataError, match='oracle: got None, expected a label for each row, None'):
        experiment(learner_of(), y_unlabeled=None, oracle=lambda X, rows: None)
