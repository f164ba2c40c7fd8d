"""Studies: the trials of a search, in memory or in a storage that several processes share."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from thinkml.errors import ConfigError
from thinkml.optimization.search_result import Trial
from thinkml.optimization.search_space import Parameters, SearchSpace

# The search ends after so many proposals in a row that a constraint refuses.
_MOST_REFUSED = 1000
# The attributes of a trial in the storage.
_ERROR, _SECONDS, _WORKER, _LEFT_OUT = 'error', 'seconds', 'worker', 'left_out'


def optuna() -> Any:
    """Returns the package Optuna.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            'search: needs the package optuna, which is not installed. Install it: '
            'pip install optuna. GridSearch does not need it.'
        ) from error
    return optuna


class Proposal(NamedTuple):
    """A setting to try.

    Attributes:
        parameters: the parameters by name.
        report: a function that takes the trial after it has ended.
    """

    parameters: Parameters
    report: Callable[[Trial], None]


class Grid:
    """All combinations of the values of a search space.

    Args:
        space: the settings to choose.
        points: the number of values of a range.
    """

    def __init__(self, space: SearchSpace, points: int):
        self._space, self._points, self._trials = space, points, []

    def proposals(self) -> Iterator[Proposal]:
        """Yields the combinations that the constraints allow."""
        for parameters in self._space.grid(self._points):
            yield Proposal(parameters, self._trials.append)

    def trials(self) -> list[Trial]:
        """Returns the trials that have ended."""
        return self._trials


class Study:
    """The trials of a search and the sampler of Optuna that proposes the next one.

    A proposal depends on the seed, its number and the trials before it. So a study that was ended
    at any moment continues as if it had not been.

    Args:
        space: the settings to choose.
        make_sampler: returns a sampler for a seed.
        count: the number of trials.
        seed: the seed of the proposals.
        scoring: the name of the metric.
        higher_is_better: True if larger scores are better.
        storage: a file, the URL of a database, or a storage of Optuna, in which the trials are
            kept; None for memory.
        name: the name of the study in the storage.

    Raises:
        ConfigError: if Optuna is not installed, or the storage has another search of that name.
    """

    def __init__(
        self,
        space: SearchSpace,
        make_sampler: Callable[[int], Any],
        *,
        count: int,
        seed: int = 0,
        scoring: str = '',
        higher_is_better: bool = True,
        storage: Any = None,
        name: str = 'search',
    ):
        self._space, self._make_sampler, self._count, self._seed = space, make_sampler, count, seed
        package = optuna()
        self._states = package.trial.TrialState
        self._trial_class = package.trial.Trial
        before = package.logging.get_verbosity()
        package.logging.set_verbosity(package.logging.WARNING)
        try:
            self._study = package.create_study(
                storage=_opened(storage), study_name=name, load_if_exists=True,
                direction='maximize' if higher_is_better else 'minimize',
            )  # fmt: skip
        finally:
            package.logging.set_verbosity(before)
        self._check_same({'scoring': scoring, 'space': repr(space.parameters), 'seed': seed})

    def proposals(self) -> Iterator[Proposal]:
        """Yields the settings that this process is to try, until the study has all trials."""
        refused = 0
        while (trial := self._next()) is not None:
            self._study.sampler = self._make_sampler(self._seed + trial.number)
            parameters = self._space.suggest(trial)
            if not self._space.allows(parameters):
                self._leave_out(trial)
                refused += 1
                if refused == _MOST_REFUSED:
                    raise ConfigError(
                        f'constraints: they refused {refused:,} proposals in a row, expected some '
                        'that are allowed.'
                    )
                continue
            refused = 0
            yield Proposal(parameters, lambda ended, trial=trial: self._report(trial, ended))

    def trials(self) -> list[Trial]:
        """Returns the trials that have ended, of all processes, in the order of their numbers."""
        ended = (self._states.COMPLETE, self._states.FAIL)
        return [
            Trial(
                parameters=self._space.values_of(trial.params),
                score=trial.value if trial.state == self._states.COMPLETE else None,
                seconds=trial.user_attrs.get(_SECONDS, 0.0),
                error=trial.user_attrs.get(_ERROR),
            )
            for trial in self._counted()
            if trial.state in ended
        ]

    def _counted(self) -> list[Any]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if _LEFT_OUT not in trial.user_attrs]

    def _next(self) -> Any:
        """Returns a trial that a process has left unfinished, or a new one; None for no more."""
        for trial in self._counted():
            if trial.state == self._states.RUNNING and _has_ended(trial.user_attrs.get(_WORKER)):
                adopted = self._trial_class(self._study, trial._trial_id)
                adopted.set_user_attr(_WORKER, _this_worker())
                return adopted
        counted = len(self._counted())
        if counted >= self._count:
            return None
        self._study.sampler = self._make_sampler(
            self._seed + len(self._study.get_trials(deepcopy=False))
        )
        trial = self._study.ask()
        trial.set_user_attr(_WORKER, _this_worker())
        # Another process may have taken the last one at the same moment.
        if sum(other.number < trial.number for other in self._counted()) >= self._count:
            self._leave_out(trial)
            return None
        return trial

    def _leave_out(self, trial: Any) -> None:
        trial.set_user_attr(_LEFT_OUT, True)
        self._study.tell(trial, state=self._states.FAIL)

    def _report(self, trial: Any, ended: Trial) -> None:
        trial.set_user_attr(_SECONDS, ended.seconds)
        if ended.score is None:
            trial.set_user_attr(_ERROR, ended.error)
            self._study.tell(trial, state=self._states.FAIL)
        else:
            self._study.tell(trial, ended.score)

    def _check_same(self, settings: dict[str, Any]) -> None:
        saved = self._study.user_attrs
        for name, value in settings.items():
            if name not in saved:
                self._study.set_user_attr(name, value)
            elif saved[name] != value:
                raise ConfigError(
                    f'storage: the study {self._study.study_name!r} has {name} {saved[name]}, but '
                    f'this search has {value}. Pass another name, or the same {name}.'
                )


def _opened(storage: Any) -> Any:
    if storage is None or not isinstance(storage, str | os.PathLike):
        return storage
    if '://' in str(storage):
        return str(storage)
    path = Path(storage)
    if not path.parent.is_dir():
        raise ConfigError(f'storage: got {path}, expected a file in a directory that exists.')
    journal = optuna().storages.journal
    return optuna().storages.JournalStorage(journal.JournalFileBackend(str(path)))


def _this_worker() -> list[Any]:
    return [socket.gethostname(), os.getpid()]


def _has_ended(worker: list[Any] | None) -> bool:
    """Returns True if a worker of this host is no process any more."""
    if worker is None or worker[0] != socket.gethostname() or worker[1] == os.getpid():
        return False
    try:
        os.kill(worker[1], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
