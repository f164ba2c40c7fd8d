"""The goals, as ratios of one run."""

import dataclasses

from .sides import peer_of


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound on a ratio of ThinkML to a peer.

    Attributes:
        what: the figure: 'time' of an epoch, 'peak memory', 'total' from process start without a
            compilation cache, 'warm total' with one.
        peer: the other side; of several sides of a peer, the best.
        at_most: the largest fraction of the peer's figure that ThinkML may take; None if
            ``at_least`` is given.
        at_least: the smallest multiple of ThinkML's figure that the peer must take.
    """

    what: str
    peer: str
    at_most: float | None = None
    at_least: float | None = None

    def judged(self, lead, ours='ThinkML'):
        """Returns a sentence that compares a lead, theirs over ours, with the goal."""
        if self.at_most is not None:
            figure, bound, met = 1 / lead, f'at most {self.at_most}', 1 / lead <= self.at_most
            says = f'{self.what}: {ours} takes {figure:.3f} of {self.peer}'
        else:
            figure, bound, met = lead, f'at least {self.at_least}', lead >= self.at_least
            says = f'{self.what}: {self.peer} takes {figure:.3f} of {ours}'
        return f'{says}; goal {bound}: {"met" if met else "missed"}'


_MEMORY = Goal('peak memory', 'scan', at_most=1.1)
# For workloads without the scan.
_MEMORY_OF_LOOP = Goal('peak memory', 'loop', at_most=1.1)
_ON_CPU = {
    'w1a': [
        Goal('time', 'scan', at_most=1.05), Goal('time', 'keras', at_least=2),
        Goal('time', 'sklearn', at_least=4), Goal('time', 'torch', at_least=6),
        Goal('time', 'nnx', at_least=9), Goal('time', 'lightning', at_least=12), _MEMORY,
    ],
    'w1b': [Goal('time', 'scan', at_most=1.05), _MEMORY],
    'w2': [
        Goal('time', 'loop', at_least=1.8), Goal('time', 'torch', at_least=1), _MEMORY_OF_LOOP,
    ],
    'w3': [
        Goal('total', 'sklearn', at_least=1), Goal('total', 'keras', at_least=2),
        Goal('warm total', 'import jax', at_most=3), _MEMORY,
    ],
    'w4': [
        Goal('time', 'loop', at_least=1.8), Goal('time', 'torch', at_least=1), _MEMORY_OF_LOOP,
    ],
    'w5': [Goal('time', 'scan', at_most=1.03), _MEMORY],
    'w6': [
        Goal('time', 'scan', at_most=1.03), Goal('time', 'loop', at_most=1.03),
        Goal('time', 'torch', at_least=1), _MEMORY,
    ],
    'w7': [Goal('time', 'scan', at_most=1.03), _MEMORY],
}  # fmt: skip
_ON_GPU = [Goal('time', 'scan', at_most=1.03), _MEMORY]


def goals_of(name, on_cpu):
    """Returns the goals of a workload."""
    return _ON_CPU[name] if on_cpu or name == 'w3' else _ON_GPU


def leads_of(ratios):
    """Returns each peer's figure as a multiple of ThinkML's, for the best side of the peer.

    Args:
        ratios: ``{what: {side: theirs over ours}}``.

    Returns:
        ``{what: {peer: theirs over ours}}``.
    """
    leads = {}
    for what, sides in ratios.items():
        best = leads.setdefault(what, {})
        for side, lead in sides.items():
            best[peer_of(side)] = min(lead, best.get(peer_of(side), lead))
    return leads
