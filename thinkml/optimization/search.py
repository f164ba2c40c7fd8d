"""Searches: the best settings of a training, chosen by cross-validation."""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from thinkml.core import is_higher_better
from thinkml.errors import ConfigError, DataError, ModelTypeError, NotTrainedError, is_whole
from thinkml.evaluation.metrics.registry import check_metrics
from thinkml.optimization.cross_validation import (
    CrossValidation,
    check_arguments,
    cross_validate,
    model_for,
    rows_with_targets,
)
from thinkml.optimization.folds import has_classes, make_folds
from thinkml.optimization.search_result import SearchResult, Trial
from thinkml.optimization.search_space import Parameters, SearchSpace
from thinkml.optimization.study import Grid, Study, optuna
from thinkml.training.config import TrainingConfig
from thinkml.training.train import check_config, train
from thinkml.training.training_data import TrainRequest
from thinkml.typing import Inputs, Labels, Model


class Search(abc.ABC):
    """The base of all searches.

    Args:
        search_space: the settings to choose, a `SearchSpace` or a dict for it.
        cv: the folds, see ``folds`` of `cross_validate`.
        scoring: the name of a metric; None for accuracy, or R2 for numbers.
        config: the other settings of each training.
        storage: see `RandomSearch`.
        name: the name of the search in the storage.
    """

    def __init__(
        self,
        search_space: SearchSpace | Mapping[str, Any],
        *,
        cv: Any = 5,
        scoring: str | None = None,
        config: TrainingConfig | None = None,
        storage: Any = None,
        name: str = 'search',
    ):
        if not isinstance(search_space, SearchSpace):
            search_space = SearchSpace(search_space)
        self.search_space = search_space
        self.cv, self.scoring, self.config = cv, scoring, check_config(config)
        self.storage, self.name = storage, name
        check_metrics(None if scoring is None else [scoring], 'scoring')
        self.result: SearchResult | None = None

    @abc.abstractmethod
    def _count(self) -> int:
        """Returns the number of trials."""

    @abc.abstractmethod
    def _study(self, scoring: str, higher_is_better: bool) -> Study | Grid:
        """Returns the trials, and what proposes the next one."""

    def _sampled(
        self, make_sampler: Callable[[int], Any], scoring: str, higher_is_better: bool
    ) -> Study:
        return Study(
            self.search_space, make_sampler, count=self._count(), seed=self.config.seed,
            scoring=scoring, higher_is_better=higher_is_better, storage=self.storage,
            name=self.name,
        )  # fmt: skip

    def get_best_parameters(self) -> Parameters:
        """Returns the best parameters of the last search.

        Raises:
            NotTrainedError: before the first.
        """
        if self.result is None:
            raise NotTrainedError('get_best_parameters: call optimize(...) first.')
        return self.result.best_parameters

    def optimize(
        self,
        model: Model | Callable[..., Model],
        X: Inputs,
        y: Labels,
        *,
        early_stopping: Any = None,
        refit: bool = True,
        progress: bool = True,
        **arguments: Any,
    ) -> SearchResult:
        """Tries settings, each by a cross-validation, and returns all trials.

        Trials that differ by numbers, such as learning rates, share their compiled programs. A
        trial that fails or diverges is recorded with its error, and the search continues. Ctrl-C
        ends it with the trials so far.

        Args:
            model: see ``make_model`` of `cross_validate`.
            X: inputs.
            y: labels or targets.
            early_stopping: the setting of that name for each training; None for that of the config.
            refit: True to train a model on all rows with the best parameters.
            progress: True shows the trials and the best score on stderr.
            **arguments: other arguments of ``train``, see `cross_validate`.

        Raises:
            ConfigError: for parameters that are unknown.
            DataError: for data that can't be used.
            NotTrainedError: if no trial has succeeded.
        """
        check_arguments(arguments)
        config_names, _ = self.search_space.split(model)
        x, targets = rows_with_targets(X, y)
        folds = make_folds(self.cv, targets, seed=self.config.seed)
        scoring = self.scoring or ('accuracy' if has_classes(targets) else 'r2')
        maximizes = is_higher_better(scoring)
        if maximizes is None:
            raise ConfigError(
                f'scoring: got {scoring!r}, expected a metric that is known to be better if it is '
                'larger, or smaller.'
            )
        config = self.config
        if early_stopping is not None:
            config = dataclasses.replace(config, early_stopping=early_stopping)

        def settings_of(parameters: Parameters) -> tuple[TrainingConfig, Parameters]:
            of_config = {name: v for name, v in parameters.items() if name in config_names}
            of_model = {name: v for name, v in parameters.items() if name not in config_names}
            return dataclasses.replace(config, **of_config), of_model

        def validate(parameters: Parameters) -> CrossValidation:
            settings, of_model = settings_of(parameters)
            return cross_validate(
                model, X, y, dataclasses.replace(settings, on_nan='raise'), folds=folds,
                scoring=[scoring], model_parameters=of_model, progress=False, **arguments,
            )  # fmt: skip

        trials = self._run(validate, scoring, maximizes, progress)
        self.result = SearchResult(scoring, maximizes, tuple(trials))
        best = self.result.best_parameters
        if refit:
            settings, of_model = settings_of(best)
            fitted = model_for(model, of_model, x, targets, settings.seed)
            train(fitted, TrainRequest(X_train=X, y_train=y, **arguments), settings)
            self.result = dataclasses.replace(self.result, best_model=fitted)
        return self.result

    def _run(
        self,
        validate: Callable[[Parameters], CrossValidation],
        scoring: str,
        higher_is_better: bool,
        progress: bool,
    ) -> list[Trial]:
        """Tries the proposals, and returns the trials of all processes that share the storage."""
        from tqdm import tqdm

        own: list[Trial] = []
        study = self._study(scoring, higher_is_better)
        with tqdm(total=self._count(), desc='trials', unit='trial', disable=not progress) as bar:
            try:
                for parameters, report in study.proposals():
                    own.append(_tried(validate, parameters, scoring, is_first=not own))
                    report(own[-1])
                    bar.update()
                    scores = [trial.score for trial in own if trial.score is not None]
                    if scores:
                        best = max(scores) if higher_is_better else min(scores)
                        bar.set_postfix({f'best {scoring}': f'{best:.4g}'})
            except KeyboardInterrupt:
                if not own:
                    raise
        if self.storage is None:
            return own
        results = {str(trial.parameters): trial.result for trial in own}
        return [
            dataclasses.replace(trial, result=results.get(str(trial.parameters)))
            for trial in study.trials()
        ]


def _tried(
    validate: Callable[[Parameters], CrossValidation],
    parameters: Parameters,
    scoring: str,
    *,
    is_first: bool,
) -> Trial:
    start = time.perf_counter()
    try:
        result = validate(parameters)
    except Exception as error:
        # Wrong data and models fail in each trial, so that the first one tells.
        if is_first and isinstance(error, DataError | ModelTypeError):
            raise
        message = f'{type(error).__name__}: {error}'
        return Trial(parameters, None, time.perf_counter() - start, message)
    score = result.metrics[scoring]
    return Trial(parameters, score, time.perf_counter() - start, None, result)


class GridSearch(Search):
    """A search of all combinations of values.

    Args:
        search_space: the settings to choose, a `SearchSpace` or a dict for it.
        cv: the folds, see ``folds`` of `cross_validate`.
        scoring: the name of a metric; None for accuracy, or R2 for numbers.
        config: the other settings of each training.
        points: the number of values that are tried of a range.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.optimization import GridSearch
        >>> from thinkml.training import TrainingConfig
        >>> X = np.random.default_rng(0).normal(size=(90, 4))
        >>> y = X.argmax(axis=1)
        >>> search = GridSearch(
        ...     {'learning_rate': [1e-4, 0.1]}, cv=3, config=TrainingConfig(epochs=10))
        >>> result = search.optimize(
        ...     lambda rngs: nnx.Linear(4, 4, rngs=rngs), X, y, progress=False)
        >>> result.best_parameters
        {'learning_rate': 0.1}
    """

    def __init__(
        self,
        search_space: SearchSpace | Mapping[str, Any],
        *,
        points: int = 5,
        cv: Any = 5,
        scoring: str | None = None,
        config: TrainingConfig | None = None,
    ):
        super().__init__(search_space, cv=cv, scoring=scoring, config=config)
        self.points = _checked_count('points', points)

    def _count(self) -> int:
        return sum(1 for _ in self.search_space.grid(self.points))

    def _study(self, scoring: str, higher_is_better: bool) -> Grid:
        del scoring, higher_is_better
        return Grid(self.search_space, self.points)


class RandomSearch(Search):
    """A search of random settings.

    Args:
        search_space: the settings to choose, a `SearchSpace` or a dict for it.
        n_iter: the number of trials.
        cv: the folds, see ``folds`` of `cross_validate`.
        scoring: the name of a metric; None for accuracy, or R2 for numbers.
        config: the other settings of each training; ``config.seed`` is that of the draws too.
        storage: a file or the URL of a database, in which the trials are kept. A search that was
            ended continues from it, and processes that pass the same one share its trials. None
            keeps them in memory.
        name: the name of the search in the storage.

    Reference:
        Bergstra and Bengio, 2012, *Random search for hyper-parameter optimization*.
    """

    def __init__(
        self,
        search_space: SearchSpace | Mapping[str, Any],
        n_iter: int = 20,
        *,
        cv: Any = 5,
        scoring: str | None = None,
        config: TrainingConfig | None = None,
        storage: Any = None,
        name: str = 'search',
    ):
        super().__init__(
            search_space, cv=cv, scoring=scoring, config=config, storage=storage, name=name
        )
        self.n_iter = _checked_count('n_iter', n_iter)

    def _count(self) -> int:
        return self.n_iter

    def _study(self, scoring: str, higher_is_better: bool) -> Study:
        sampler = optuna().samplers.RandomSampler
        return self._sampled(lambda seed: sampler(seed=seed), scoring, higher_is_better)


class BayesianOptimization(Search):
    """A search that proposes settings like the best ones so far (TPE of Optuna).

    Args:
        search_space: the settings to choose, a `SearchSpace` or a dict for it.
        n_iter: the number of trials, the first ten of them random.
        cv: the folds, see ``folds`` of `cross_validate`.
        scoring: the name of a metric; None for accuracy, or R2 for numbers.
        config: the other settings of each training; ``config.seed`` is that of the draws too.
        storage: see `RandomSearch`.
        name: the name of the search in the storage.

    Reference:
        Bergstra et al., 2011, *Algorithms for hyper-parameter optimization*.
    """

    def __init__(
        self,
        search_space: SearchSpace | Mapping[str, Any],
        n_iter: int = 30,
        *,
        cv: Any = 5,
        scoring: str | None = None,
        config: TrainingConfig | None = None,
        storage: Any = None,
        name: str = 'search',
    ):
        super().__init__(
            search_space, cv=cv, scoring=scoring, config=config, storage=storage, name=name
        )
        self.n_iter = _checked_count('n_iter', n_iter)

    def _count(self) -> int:
        return self.n_iter

    def _study(self, scoring: str, higher_is_better: bool) -> Study:
        sampler = optuna().samplers.TPESampler
        return self._sampled(lambda seed: sampler(seed=seed), scoring, higher_is_better)


class GeneticOptimization(Search):
    """A search that combines and changes the best settings so far (NSGA-II of Optuna).

    Args:
        search_space: the settings to choose, a `SearchSpace` or a dict for it.
        population_size: the number of settings in a generation.
        n_generations: the number of generations.
        cv: the folds, see ``folds`` of `cross_validate`.
        scoring: the name of a metric; None for accuracy, or R2 for numbers.
        config: the other settings of each training; ``config.seed`` is that of the draws too.
        storage: see `RandomSearch`.
        name: the name of the search in the storage.

    Reference:
        Deb et al., 2002, *A fast and elitist multiobjective genetic algorithm: NSGA-II*.
    """

    def __init__(
        self,
        search_space: SearchSpace | Mapping[str, Any],
        population_size: int = 10,
        n_generations: int = 5,
        *,
        cv: Any = 5,
        scoring: str | None = None,
        config: TrainingConfig | None = None,
        storage: Any = None,
        name: str = 'search',
    ):
        super().__init__(
            search_space, cv=cv, scoring=scoring, config=config, storage=storage, name=name
        )
        self.population_size = _checked_count('population_size', population_size)
        if population_size < 2:
            raise ConfigError(f'population_size: got {population_size}, expected at least 2.')
        self.n_generations = _checked_count('n_generations', n_generations)

    def _count(self) -> int:
        return self.population_size * self.n_generations

    def _study(self, scoring: str, higher_is_better: bool) -> Study:
        sampler = functools.partial(
            optuna().samplers.NSGAIISampler, population_size=self.population_size
        )
        return self._sampled(lambda seed: sampler(seed=seed), scoring, higher_is_better)


def _checked_count(name: str, value: Any) -> int:
    if not is_whole(value) or value < 1:
        raise ConfigError(f'{name}: got {value!r}, expected a whole number of at least 1.')
    return int(value)
