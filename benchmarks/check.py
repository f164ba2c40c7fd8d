"""Fails if ThinkML has lost more than 15 % of its lead over a peer since the last recording.

    python benchmarks/check.py            # about eight minutes on 2 idle cores
    python benchmarks/check.py w1a w3     # these workloads only
    python benchmarks/check.py --record   # measure, and write recorded.json again

Runs the race of `race.py` in a short form and compares ratios with those of `recorded.json`. A lead
that seems lost is measured once more, and counts as lost if both runs agree. A recorded figure that
is no longer measured (for a peer that is not installed, say) counts as lost.
"""

import argparse
import json
import sys
from pathlib import Path

from peers.workloads import WORKLOADS
from race import known, machine, measure

RECORDED = Path(__file__).with_name('recorded.json')
TOLERANCE = 0.15
SIDES = ('thinkml', 'scan', 'loop', 'keras-50', 'torch', 'torch-1', 'torch-all', 'sklearn-1')
ROUNDS = 9


def leads_of_run(names, on_cpu):
    """Returns ``{workload: {what: {peer: theirs over ours}}}`` of a short race."""
    leads = {}
    for name in names:
        rounds = None if WORKLOADS[name].rows is None else ROUNDS
        measured = measure(name, on_cpu, rounds=rounds, only=SIDES)
        for side, why in measured['failed'].items():
            print(f'{name}: {side} failed: {why}')
        leads[name] = measured['leads'].get('thinkml', {})
    return leads


def flat(leads):
    """Returns the leads under one name per figure: ``{'w1a time scan': 1.07}``."""
    return {
        f'{name} {what} {peer}': lead
        for name, of_workload in leads.items()
        for what, of_what in of_workload.items()
        for peer, lead in of_what.items()
    }


def best_of(first, second):
    """Returns the better lead of each figure."""
    figures = [flat(first), flat(second)]
    names = figures[0] | figures[1]
    return {name: max(run[name] for run in figures if name in run) for name in names}


def lost(recorded, measured, tolerance=TOLERANCE):
    """Returns the figures that became worse, ``{figure: (old, new)}``; new is None if not measured.

    Args:
        recorded: leads by figure.
        measured: leads by figure.
        tolerance: the fraction of a lead that may be lost.
    """
    return {
        figure: (old, measured.get(figure))
        for figure, old in recorded.items()
        if measured.get(figure, 0) < old * (1 - tolerance)
    }


def report(recorded, measured):
    for figure, old in recorded.items():
        new = measured.get(figure)
        print(f'{figure:32} {old:8.3f} recorded {"not measured" if new is None else f"{new:8.3f}"}')
    failures = lost(recorded, measured)
    for figure, (old, new) in failures.items():
        says = 'is not measured any more' if new is None else f'is {new:.3f}'
        print(f'LOST: {figure}: was {old:.3f}, {says}')
    return failures


def compare(names, on):
    told = json.loads(RECORDED.read_text())
    for key in ('cpu', 'cores', 'device', 'versions'):
        if told['machine'][key] != on[key]:
            print(f'{key}: recorded on {told["machine"][key]}, this is {on[key]}')
    recorded = {name: told['leads'][name] for name in names if name in told['leads']}
    first = leads_of_run(recorded, on['on_cpu'])
    measured = flat(first)
    if doubtful := lost(flat(recorded), measured):
        print(f'Once more, because of {", ".join(doubtful)}.')
        again = {figure.split()[0] for figure in doubtful}
        measured = best_of(first, leads_of_run(again, on['on_cpu']))
    return report(flat(recorded), measured)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('workloads', nargs='*', type=known, help=', '.join(WORKLOADS))
    parser.add_argument('--record', action='store_true')
    asked = parser.parse_args()
    names, on = asked.workloads or list(WORKLOADS), machine()
    if asked.record:
        before = json.loads(RECORDED.read_text())['leads'] if RECORDED.exists() else {}
        leads = before | leads_of_run(names, on['on_cpu'])
        RECORDED.write_text(json.dumps({'machine': on, 'leads': leads}, indent=1) + '\n')
        return 0
    return 1 if compare(names, on) else 0


if __name__ == '__main__':
    sys.exit(main())
