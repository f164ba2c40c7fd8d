"""Stopping rules: when more labels are no longer worth their price."""

import dataclasses

import numpy as np

from thinkml.core import is_higher_better
from thinkml.errors import ConfigError
from thinkml.tasks import Task
from thinkml.training.active.history import ActiveHistory

_NUM_AGREEMENTS = 3


@dataclasses.dataclass(frozen=True)
class StoppingRules:
    """Rules that end active learning, see `ActiveLearner`; a rule that is None is off.

    Attributes:
        max_labels: the budget of labels.
        patience: iterations without improvement.
        min_agreement: the agreement from which on predictions count as stable.
    """

    max_labels: int | None
    patience: int | None
    min_agreement: float | None

    def check(self, task: Task | None, *, has_validation: bool) -> None:
        """Raises a `ConfigError` for rules that can't work."""
        if self.patience is not None and not has_validation:
            raise ConfigError(
                f'patience: got {self.patience} without X_val and y_val, expected them: it '
                'monitors the first of their metrics.'
            )
        if self.min_agreement is not None and task is not None and not task.is_classification:
            raise ConfigError(
                f'min_agreement: got {self.min_agreement} for {task.in_words}, expected '
                'None: agreement is that of classes. Pass patience or max_labels.'
            )

    def stop_reason(self, history: ActiveHistory, num_added: int, metric: str | None) -> str | None:
        """Returns the reason to stop; None to continue.

        Args:
            history: the history so far.
            num_added: the number of labels that were added to the initial ones.
            metric: the validation metric that is to improve; None if it was not measured.
        """
        if self.max_labels is not None and num_added >= self.max_labels:
            return f'{num_added} labels were given (max_labels={self.max_labels})'
        if self.patience is not None and metric is not None:
            values = history.learning_curve(metric)[1]
            values = values if is_higher_better(metric.removeprefix('val_')) else -values
            num_without_gain = len(values) - 1 - int(np.argmax(values))
            if num_without_gain >= self.patience:
                return f'{metric} has not improved for {num_without_gain} iterations'
        if self.min_agreement is not None:
            trained = [query for query in history.queries if query.status != 'skipped']
            last = [query.agreement for query in trained[-_NUM_AGREEMENTS:]]
            if len(last) == _NUM_AGREEMENTS and np.mean(last) >= self.min_agreement:
                return f'predictions are stable (agreement {np.mean(last):.3f})'
        return None


def prediction_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Cohen's kappa of two models' predictions; 1 if both always predict the same class.

    Unlike `thinkml.core.objectives.confusion_counts.kappa` it takes the predictions themselves,
    also rows of several labels.

    Reference:
        Cohen, 1960, *A coefficient of agreement for nominal scales*.
    """
    both = np.concatenate([first, second])
    axis = None if both.ndim == 1 else 0  # rows are compared as bytes, which is many times slower
    classes, codes = np.unique(both, axis=axis, return_inverse=True)
    first_codes, second_codes = codes.reshape(2, -1)
    agreement = float(np.mean(first_codes == second_codes))
    fractions = [
        np.bincount(part, minlength=len(classes)) / len(part)
        for part in (first_codes, second_codes)
    ]
    chance = float(fractions[0] @ fractions[1])
    return 1.0 if chance == 1 else (agreement - chance) / (1 - chance)
