"""When more labels are no longer worth their price."""

import dataclasses

import numpy as np

from thinkml.core import is_higher_better
from thinkml.errors import ConfigError
from thinkml.model_record import Task
from thinkml.training.active.history import ActiveHistory

_AGREEMENTS = 3


@dataclasses.dataclass(frozen=True)
class StoppingRules:
    """Rules that end an active learning, see `ActiveLearner`; None for none.

    Attributes:
        max_labels: a budget.
        patience: iterations without gain.
        min_agreement: of predictions that are stable.
    """

    max_labels: int | None
    patience: int | None
    min_agreement: float | None

    def check(self, task: Task | None, *, has_validation: bool) -> None:
        """Raises a `ConfigError` for rules that can't work."""
        if self.patience is not None and not has_validation:
            raise ConfigError(
                f'patience: got {self.patience} without X_val and y_val, expected them: it watches '
                'the first of their metrics.'
            )
        if self.min_agreement is not None and task is not None and not task.is_classification:
            raise ConfigError(
                f'min_agreement: got {self.min_agreement} for {task.in_words}, expected '
                'None: agreement is that of classes. Pass patience or max_labels.'
            )

    def reason(self, history: ActiveHistory, num_given: int, metric: str | None) -> str | None:
        """Says why it is time to stop, if it is.

        Args:
            history: so far.
            num_given: labels that were given.
            metric: the validation metric that is to gain; None where it was not measured.
        """
        if self.max_labels is not None and num_given >= self.max_labels:
            return f'{num_given} labels were given (max_labels={self.max_labels})'
        if self.patience is not None and metric is not None:
            values = history.learning_curve(metric)[1]
            values = values if is_higher_better(metric.removeprefix('val_')) else -values
            waited = len(values) - 1 - int(np.argmax(values))
            if waited >= self.patience:
                return f'{metric} has not gained for {waited} iterations'
        if self.min_agreement is not None:
            trained = [query for query in history.queries if query.status != 'skipped']
            last = [query.agreement for query in trained[-_AGREEMENTS:]]
            if len(last) == _AGREEMENTS and np.mean(last) >= self.min_agreement:
                return f'predictions are stable (agreement {np.mean(last):.3f})'
        return None


def kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa of two raters; 1 where both always say the same one thing.

    Reference:
        Cohen, 1960, *A coefficient of agreement for nominal scales*.
    """
    both = np.concatenate([one, other])
    by_row = None if both.ndim == 1 else 0  # which compares bytes, many times slower
    labels, codes = np.unique(both, axis=by_row, return_inverse=True)
    first, second = codes.reshape(2, -1)
    agree = float(np.mean(first == second))
    shares = [np.bincount(part, minlength=len(labels)) / len(part) for part in (first, second)]
    by_chance = float(shares[0] @ shares[1])
    return 1.0 if by_chance == 1 else (agree - by_chance) / (1 - by_chance)
