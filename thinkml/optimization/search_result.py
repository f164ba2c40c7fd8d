"""SearchResult: the trials of a search, with the best of them."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkml.errors import DataError, NotTrainedError
from thinkml.json_values import to_json_value
from thinkml.optimization.cross_validation import CrossValidation
from thinkml.optimization.search_space import Parameters
from thinkml.text_table import aligned_lines
from thinkml.typing import Model

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A setting that a search has tried.

    Attributes:
        parameters: the parameters by name.
        score: the mean of the scoring metric over the folds; None if the trial failed.
        seconds: the time that it took.
        error: the error of a trial that failed; None for others.
        result: the cross-validation; None if the trial failed or was loaded from a file.
    """

    parameters: Parameters
    score: float | None
    seconds: float
    error: str | None = None
    result: CrossValidation | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The trials of a search; it prints the best of them as a table.

    Attributes:
        scoring: the name of the metric.
        higher_is_better: True if larger values of it are better.
        trials: the trials, in their order.
        best_model: the model trained on all rows with the best parameters; None without a refit.
    """

    scoring: str
    higher_is_better: bool
    trials: tuple[Trial, ...]
    best_model: Model | None = None

    @property
    def best_trial(self) -> Trial:
        """Returns the trial with the best score, the first of several.

        Raises:
            NotTrainedError: if no trial has succeeded. The message has the first error.
        """
        scored = self._from_best_to_worst()
        if not scored:
            errors = [trial.error for trial in self.trials if trial.error is not None]
            raise NotTrainedError(
                f'best_trial: none of {len(self.trials)} trials has succeeded'
                + (f'. The first failed with {errors[0]}' if errors else '.')
            )
        return scored[0]

    @property
    def best_parameters(self) -> Parameters:
        """Returns the parameters of the best trial."""
        return dict(self.best_trial.parameters)

    def get_best_parameters(self) -> Parameters:
        """Returns the parameters of the best trial, as `best_parameters`."""
        return self.best_parameters

    def to_pandas(self) -> 'pd.DataFrame':
        """Returns a table with a row for each trial."""
        import pandas as pd

        rows = [
            {
                **trial.parameters, self.scoring: trial.score, 'seconds': trial.seconds,
                'error': trial.error,
            }
            for trial in self.trials
        ]  # fmt: skip
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name='trial'))

    def save_results(self, path: str | os.PathLike[str]) -> Path:
        """Writes the trials as JSON; models and cross-validations are not written."""
        target = Path(path)
        document = {
            'scoring': self.scoring,
            'higher_is_better': self.higher_is_better,
            'trials': [
                {
                    'parameters': trial.parameters, 'score': trial.score,
                    'seconds': trial.seconds, 'error': trial.error,
                }
                for trial in self.trials
            ],
        }  # fmt: skip
        part = target.with_name(f'{target.name}.part')
        part.write_text(json.dumps(to_json_value(document, repr), indent=1))
        os.replace(part, target)
        return target

    @classmethod
    def load_results(cls, path: str | os.PathLike[str]) -> 'SearchResult':
        """Returns the trials of a file that `save_results` has written.

        Raises:
            DataError: for a file that is none of these.
        """
        try:
            document = json.loads(Path(path).read_text())
            trials = tuple(Trial(**trial) for trial in document['trials'])
            return cls(document['scoring'], document['higher_is_better'], trials)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'path: {path} holds no results of a search: {type(error).__name__}: {error}'
            ) from error

    def __str__(self) -> str:
        order = self._from_best_to_worst()
        names = list(self.trials[0].parameters) if self.trials else []
        rows = [(self.scoring, *names)]
        rows += [
            (f'{trial.score:.4f}', *(_shown(trial.parameters[name]) for name in names))
            for trial in order[:10]
        ]
        failed = len(self.trials) - len(order)
        head = f'{len(self.trials)} trials' + (f', {failed} failed' if failed else '')
        return '\n'.join([head, *aligned_lines(rows, right=range(len(rows[0])))])

    __repr__ = __str__

    def _from_best_to_worst(self) -> list[Trial]:
        sign = -1 if self.higher_is_better else 1
        scores = {trial: sign * trial.score for trial in self.trials if trial.score is not None}
        return sorted(scores, key=scores.__getitem__)


def _shown(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
