"""The auxiliary losses of a training: the values that its model sows, checked."""

import dataclasses
from collections.abc import Mapping

from thinkml.core.model.sown_values import SownValues
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.core.train.aux_losses import AuxLosses, sown_problem
from thinkml.errors import ConfigError, warn_user
from thinkml.training.metric_names import check_value_name
from thinkml.training.objective import TrainingObjective


def with_aux_losses(
    objective: TrainingObjective, weights: Mapping[str, float] | None, sown: SownValues
) -> TrainingObjective:
    """Returns an objective with the sown values that are added to its loss.

    Args:
        objective: the loss and the metrics.
        weights: the weight of each value, by name; None for none, with a warning if there are any.
        sown: the shapes and dtypes of the values that the model sows for a few rows, by name.

    Raises:
        ConfigError: for a name that the model does not sow or that the history has already, and for
            values that can't be added.
    """
    # Other sown values are for inspection, such as features.
    usable = [name for name in sown if sown_problem(name, sown[name], PROBE_ROWS) is None]
    if weights is None:
        if usable:
            names = ', '.join(map(repr, usable))
            warn_user(
                f'model: it sows {names}, which no loss contains. To add a value to the loss, pass '
                f'TrainingConfig(aux_losses={{{usable[0]!r}: 0.01}}); to leave it out, '
                'aux_losses={}.'
            )
        return objective
    taken = (*objective.metric_names, *objective.training_metrics)
    for name in weights:
        if name not in sown:
            raise ConfigError(_not_sown(name, usable))
        if problem := sown_problem(name, sown[name], PROBE_ROWS):
            raise ConfigError(with_rows(problem))
        check_value_name(
            name, 'aux_losses: the model sows', 'Sow it with another name.', others=taken
        )
    return dataclasses.replace(objective, aux_losses=AuxLosses(tuple(weights.items())))


def _not_sown(name: str, usable: list[str]) -> str:
    sows = f'sows {", ".join(map(repr, usable))}' if usable else 'sows nothing that can be added'
    return (
        f'aux_losses: got {name!r}, but in training mode the model {sows}. Sow the value in a '
        f'layer, with self.sow(nnx.Intermediate, {name!r}, value) in NNX or '
        f"self.sow('losses', {name!r}, value) in Linen."
    )
