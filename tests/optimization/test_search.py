"""Searches: grids beside scikit-learn's, samplers, failures, results."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from flax import nnx
from sklearn.model_selection import ParameterGrid

from thinkml.errors import ConfigError, DataError, NotTrainedError
from thinkml.models import predict
from thinkml.optimization import (
    BayesianOptimization,
    GeneticOptimization,
    GridSearch,
    RandomSearch,
    SearchResult,
    SearchSpace,
    Trial,
    cross_validate,
)
from thinkml.optimization.study import Study, _has_ended
from thinkml.training import ModelTrainer, TrainingConfig

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
y = X[:, :3].argmax(axis=1)
CONFIG = TrainingConfig(epochs=4, batch_size=16, seed=3)
SPACE = {'learning_rate': [1e-4, 0.1], 'width': [4, 8]}


def make_model(rngs, width=8):
    return nnx.Sequential(
        nnx.Linear(4, width, rngs=rngs), nnx.relu, nnx.Linear(width, 3, rngs=rngs)
    )


def search(kind=GridSearch, space=None, model=make_model, X=X, y=y, refit=False, **settings):
    settings = {'cv': 2, 'config': CONFIG} | settings
    searcher = kind(SPACE if space is None else space, **settings)
    return searcher.optimize(model, X, y, refit=refit, progress=False)


@functools.cache
def grid():
    return search(refit=True)


def test_a_grid_is_that_of_scikit_learn_and_its_scores_those_of_cross_validations():
    found = [trial.parameters for trial in grid().trials]
    assert sorted(map(str, found)) == sorted(
        str({name: one[name] for name in SPACE}) for one in ParameterGrid(SPACE)
    )
    for trial in grid().trials:
        config = TrainingConfig(
            epochs=4, batch_size=16, seed=3, learning_rate=trial.parameters['learning_rate']
        )
        expected = cross_validate(
            make_model, X, y, config, folds=2, scoring=['accuracy'], progress=False,
            model_parameters={'width': trial.parameters['width']},
        )  # fmt: skip
        assert trial.score == expected.metrics['accuracy']
    best = max(trial.score for trial in grid().trials)
    assert grid().best_trial.score == best and grid().best_parameters['learning_rate'] == 0.1


def test_the_best_model_is_trained_on_all_rows():
    best = grid().get_best_parameters()
    config = TrainingConfig(epochs=4, batch_size=16, seed=3, learning_rate=best['learning_rate'])
    model = make_model(nnx.Rngs(3), best['width'])
    ModelTrainer(config).train(model, X, y, progress=False)
    np.testing.assert_array_equal(predict(grid().best_model, X), predict(model, X))


def test_other_numbers_compile_nothing_again(count_compiles):
    grid()
    space = {'learning_rate': (1e-3, 1e-1, 'log'), 'epochs': [2, 3]}
    assert count_compiles(search, space=space, points=3) == 0


@pytest.mark.parametrize('kind', [RandomSearch, BayesianOptimization, GeneticOptimization])
def test_proposals_are_within_the_space_and_the_same_for_a_seed(kind):
    sizes = (
        {'population_size': 3, 'n_generations': 2} if kind is GeneticOptimization else {'n_iter': 6}
    )
    space = SearchSpace(
        {'learning_rate': (1e-3, 1e-1, 'log'), 'seed': (0, 9, 'int')},
        constraints=lambda p: p['seed'] != 3,
    )
    found = search(kind, space, **sizes)
    again = search(kind, space, **sizes)
    assert len(found.trials) == 6
    for trial, other in zip(found.trials, again.trials, strict=True):
        assert trial.parameters == other.parameters and trial.score == other.score
        assert 1e-3 <= trial.parameters['learning_rate'] <= 1e-1
        assert trial.parameters['seed'] in {0, 1, 2, 4, 5, 6, 7, 8, 9}


def best_of(sampler, seed, storage=None, count=40, stop=None):
    """Returns the values of a study of a noisy function, which may stop before its end."""
    space = SearchSpace({'a': (-5.0, 5.0), 'b': (-5.0, 5.0), 'c': (1e-4, 1.0, 'log')})
    study = Study(
        space, lambda seed: sampler(seed=seed), count=count, seed=1000 * seed,
        higher_is_better=False, storage=storage,
    )  # fmt: skip
    for index, (p, report) in enumerate(study.proposals()):
        if index == stop:
            break  # and the trial stays unfinished
        value = (p['a'] - 1) ** 2 + (p['b'] + 2) ** 2 + (np.log10(p['c']) + 2) ** 2
        noise = np.random.default_rng(int(1e6 * value)).normal()
        report(Trial(p, value + 0.1 * noise, 0.0))
    return [trial.score for trial in study.trials()]


def test_the_bayesian_search_finds_better_values_than_a_random_one():
    tpe, at_random = (
        np.mean([min(best_of(sampler, seed)) for seed in range(20)])
        for sampler in (optuna.samplers.TPESampler, optuna.samplers.RandomSampler)
    )
    assert tpe < 0.7 * at_random


def test_a_study_that_is_stopped_at_any_moment_has_the_same_trials(tmp_path, monkeypatch):
    """The worker that was stopped is no process any more, so its trial is taken over."""
    monkeypatch.setattr('thinkml.optimization.study._has_ended', lambda worker: worker is not None)
    expected = best_of(optuna.samplers.TPESampler, 3, count=15)
    for stop in (0, 1, 7, 11, 14):
        storage = tmp_path / f'{stop}.log'
        best_of(optuna.samplers.TPESampler, 3, storage, count=15, stop=stop)
        found = best_of(optuna.samplers.TPESampler, 3, storage, count=15)
        assert found == expected


def test_only_workers_of_this_host_are_known_to_have_ended():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    host = socket.gethostname()
    assert _has_ended([host, process.pid])
    assert not _has_ended([host, os.getpid()]) and not _has_ended([host, os.getppid()])
    assert not _has_ended(['elsewhere', process.pid]) and not _has_ended(None)


def test_two_processes_share_a_search_and_run_no_trial_twice(tmp_path):
    start = functools.partial(
        subprocess.Popen, [sys.executable, '-m', 'tests.optimization.run_to_share', tmp_path / 's'],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in [start(), start()]]
    tried = [json.loads(line) for output in outputs for line in output.splitlines()]
    own = [
        [one for one in tried if one['process'] == index] for index in {t['process'] for t in tried}
    ]
    assert len(own) == 2 and sum(map(len, own)) == 8 == len({one['rate'] for one in tried})


def test_a_search_continues_from_its_storage_and_refuses_another_one(tmp_path):
    settings = {'kind': RandomSearch, 'space': {'learning_rate': (1e-3, 0.1, 'log')}}
    whole = search(**settings, n_iter=4)
    first = search(**settings, n_iter=2, storage=tmp_path / 'study')
    both = search(**settings, n_iter=4, storage=str(tmp_path / 'study'))
    assert len(first.trials) == 2
    for trials in (first.trials, both.trials):
        for trial, expected in zip(trials, whole.trials, strict=False):
            assert (trial.parameters, trial.score) == (expected.parameters, expected.score)
    assert both.trials[0].result is None and both.trials[3].result is not None
    with pytest.raises(ConfigError, match="the study 'search' has scoring accuracy"):
        search(**settings, storage=tmp_path / 'study', scoring='f1')
    with pytest.raises(ConfigError, match=r'storage: got .*, expected a file in a directory'):
        search(**settings, storage=tmp_path / 'none' / 'study')


def test_a_trial_that_fails_or_diverges_is_recorded_and_the_search_continues():
    found = search(space={'learning_rate': [0.1, 1e30], 'optimizer': ['sgd', 'adam']})
    assert len(found.trials) == 4
    failed = [trial for trial in found.trials if trial.error is not None]
    assert {trial.parameters['learning_rate'] for trial in failed} == {1e30}
    assert 'DivergedError' in failed[0].error and failed[0].score is None
    assert found.best_parameters['learning_rate'] == 0.1
    assert f'{len(failed)} failed' in str(found)

    def broken(rngs, width):
        raise RuntimeError('no such net')

    with pytest.raises(NotTrainedError, match=r'none of 2 trials .* RuntimeError: no such net'):
        search(space={'width': [1, 2]}, model=broken)


def test_ctrl_c_ends_with_the_trials_so_far():
    calls = []

    def make(rngs, width):
        calls.append(width)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return make_model(rngs, width)

    assert len(search(space={'width': [4, 8]}, model=make).trials) == 1


def test_results_are_saved_and_loaded(tmp_path):
    path = grid().save_results(tmp_path / 'results.json')
    loaded = SearchResult.load_results(path)
    assert str(loaded) == str(grid())
    assert loaded.to_pandas().equals(grid().to_pandas())
    path.write_text(json.dumps({'trials': [3]}))
    with pytest.raises(DataError, match='holds no results of a search'):
        SearchResult.load_results(path)


def test_numbers_are_scored_by_r2_and_objects_may_be_choices():
    found = search(
        space={'width': [4]}, y=X.sum(axis=1),
        model=lambda rngs, width: nnx.Linear(4, 1, rngs=rngs),
    )  # fmt: skip
    assert found.scoring == 'r2'
    found = search(space={'act': [jnp.tanh, nnx.relu]}, model=lambda rngs, act: make_model(rngs))
    assert {trial.parameters['act'] for trial in found.trials} == {jnp.tanh, nnx.relu}
    losses = search(scoring='log_loss')
    assert losses.best_trial.score == min(trial.score for trial in losses.trials)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'space': {}}, ConfigError, 'parameters: got {}'),
        ({'space': {'width': []}}, ConfigError, 'got an empty list'),
        ({'space': {'width': (4, 2)}}, ConfigError, r'got \(4, 2\), expected low < high'),
        ({'space': {'width': (0, 2, 'log')}}, ConfigError, 'above 0 for log'),
        ({'space': {'width': (0.5, 2, 'int')}}, ConfigError, 'whole numbers for int'),
        ({'space': {'width': (1, 2, 'lin')}}, ConfigError, "'log', 'int' or 'log int'"),
        ({'space': {'widht': [4]}}, ConfigError, "got 'widht', .* Did you mean 'width'"),
        ({'space': {'seed': [4]}, 'model': lambda seed: None}, ConfigError, 'expected one of both'),
        ({'scoring': 'accurcy'}, ConfigError, "scoring: got 'accurcy'"),
        ({'cv': 1}, ConfigError, 'folds: got 1'),
        ({'points': 0}, ConfigError, 'points: got 0'),
        ({'kind': RandomSearch, 'n_iter': 0}, ConfigError, 'n_iter: got 0'),
        ({'y': y[:3]}, DataError, 'rows'),
        ({'model': 3, 'space': {'epochs': [1]}}, NotTrainedError, 'model: got 3'),
        ({'model': 'mlp', 'space': {'hiden': [1]}}, ConfigError, "Did you mean 'hidden'"),
    ],
)
def test_wrong_input_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        search(**settings)
    with pytest.raises(NotTrainedError, match='call optimize'):
        GridSearch(SPACE).get_best_parameters()
