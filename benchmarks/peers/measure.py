"""Measures a workload: epochs in turns, or whole programs in turns."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .process import Busy, Peer, PeerFailed
from .sides import OURS, SIDES, options_for
from .workloads import WORKLOADS

WARM_UP = 2  # rounds that compile and measure the pace
EVERY = 3  # slow peers take part in every third round
TURNS = 3  # turns of whole programs
PATIENCE = 60  # seconds after which a slow peer has no more turns
PATIENCE_WITH_PROGRAMS = 15  # the same for whole programs


def race(name, sides, on_cpu, rows=None, rounds=None):
    """Measures a workload whose peers take turns epoch by epoch.

    Returns:
        the content of the tables: ``sides``, and the ``ratios`` of theirs to each side of ours.
    """
    workload, busy = WORKLOADS[name], Busy()
    told, failed = take_turns(name, sides, on_cpu, rows, rounds or workload.rounds)
    common = min((len(said['epochs']) for said in told.values()), default=0)
    figures = {side: figures_of(said, common) for side, said in told.items()}
    for side, of_side in figures.items():
        of_side['examples_per_second'] = (rows or workload.rows) / of_side['seconds']
        of_side['over_scan'] = ratio(told, side, 'scan' if 'scan' in told else 'loop')
        of_side['cpu_over_thinkml'] = ratio(told, side, 'thinkml', 'cpu')
    ratios = {
        ours: {
            'time': {side: ratio(told, side, ours) for side in told},
            'peak memory': {
                side: memory(of_side) / memory(figures[ours]) for side, of_side in figures.items()
            },
        }
        for ours in OURS
        if ours in figures
    }
    return {
        'sides': figures, 'ratios': of_peers(ratios), 'failed': failed,
        'epochs': common, 'busy': busy.cores(),
    }  # fmt: skip


def take_turns(name, sides, on_cpu, rows, rounds):
    """Lets the sides train epoch by epoch; returns their messages and the errors of others."""
    workload, peers, told, failed = WORKLOADS[name], {}, {}, {}

    def is_due(side, turn):
        if side in failed:
            return False
        if not SIDES[side].slow:
            return True
        spent = sum(epoch['seconds'] for epoch in told[side]['epochs'].values())
        return turn % EVERY == 0 and (turn <= WARM_UP + 1 or spent < PATIENCE)

    def asked(side, action):
        try:
            return action()
        except (PeerFailed, BrokenPipeError) as error:
            failed[side] = str(error)

    with tempfile.TemporaryDirectory() as directory:
        try:
            for side in sides:
                epochs = -(-rounds // EVERY) if SIDES[side].slow else rounds
                options = options_for(side, workload, on_cpu)
                arguments = side, name, options, epochs, Path(directory) / side, rows
                if peer := asked(side, lambda arguments=arguments: Peer(*arguments)):
                    peers[side] = peer
                    told[side] = {'start': peer.start_seconds, 'epochs': {}}
            for turn in range(rounds):
                for side in peers:
                    if is_due(side, turn) and (said := asked(side, peers[side].epoch)):
                        told[side]['epochs'][turn] = said
        finally:
            for peer in peers.values():
                peer.close()
    return {side: said for side, said in told.items() if side not in failed}, failed


def figures_of(said, common):
    """Returns the figures of one side; its loss is after as many epochs as all have trained."""
    epochs = list(said['epochs'].values())
    paced = [epoch for turn, epoch in said['epochs'].items() if turn >= WARM_UP]
    return {
        'seconds': statistics.median(epoch['seconds'] for epoch in paced),
        'cpu': statistics.median(epoch['cpu'] for epoch in paced),
        'first_epoch': epochs[0]['seconds'],
        'from_start': said['start'] + epochs[0]['seconds'],
        'peak': epochs[-1]['peak'],
        'device_peak': epochs[-1]['device_peak'],
        'losses': [epoch['loss'] for epoch in epochs],
        'loss': epochs[common - 1]['loss'],
    }


def ratio(told, side, other, key='seconds'):
    """Returns the median ratio of two sides over their common rounds; None without any."""
    if other not in told:
        return None
    theirs, ours = told[side]['epochs'], told[other]['epochs']
    rounds = [turn for turn in theirs if turn in ours and turn >= WARM_UP]
    return statistics.median(theirs[turn][key] / ours[turn][key] for turn in rounds)


def memory(figures):
    """Returns the peak of the device's own memory, or of the process's if it has none."""
    return figures['device_peak'] or figures['peak']


def of_peers(ratios):
    """Returns the ratios of other sides than ours, without missing ones."""
    return {
        ours: {
            what: {name: value for name, value in of.items() if name not in OURS and value}
            for what, of in ratios_to_ours.items()
        }
        for ours, ratios_to_ours in ratios.items()
    }


def totals(name, sides, turns=TURNS, epochs=None):
    """Measures whole programs: cold, and for those on JAX also with a warm compilation cache."""
    busy, runs, failed = Busy(), {}, {}
    epochs = epochs or WORKLOADS[name].rounds
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / 'digits.npz'
        save_digits(data)
        for turn in range(turns):
            for side in [side for side in sides if side not in failed]:
                spent = sum(run['total'] for run in runs.get((side, 'cold'), {}).values())
                if SIDES[side].slow and spent > PATIENCE_WITH_PROGRAMS:
                    continue
                cache = Path(directory) / f'{side}-{turn}'
                try:
                    for state in ('cold', 'warm') if SIDES[side].on_jax else ('cold',):
                        run = whole_program(name, side, epochs, cache, data)
                        runs.setdefault((side, state), {})[turn] = run
                except PeerFailed as error:
                    failed[side] = str(error)
            for title, code in {'import jax': 'import jax', 'Python': 'pass'}.items():
                runs.setdefault((title, 'cold'), {})[turn] = bare_process(code)
    figures = {}
    for (side, state), of_turns in runs.items():
        figures.setdefault(side, {})[state] = {
            key: statistics.median(run[key] for run in of_turns.values())
            for key in next(iter(of_turns.values()))
        }
    figures = {side: states for side, states in figures.items() if side not in failed}
    ratios = {ours: ratios_of_totals(runs, figures, ours) for ours in OURS if ours in figures}
    return {
        'sides': figures, 'ratios': of_peers(ratios), 'failed': failed,
        'epochs': epochs, 'busy': busy.cores(),
    }  # fmt: skip


def ratios_of_totals(runs, figures, ours):
    """Returns theirs over ours, by turn; sides without a warm cache keep their cold totals."""
    ratios = {'total': {}, 'warm total': {}, 'peak memory': {}}
    for side in [side for side in figures if side != 'Python']:
        for what, state in {'total': 'cold', 'warm total': 'warm'}.items():
            took = runs[ours, state]
            theirs = runs.get((side, state)) or runs[side, 'cold']
            ratios[what][side] = statistics.median(
                theirs[turn]['total'] / took[turn]['total'] for turn in theirs
            )
        if 'peak' in figures[side]['cold']:
            most = memory(figures[ours]['cold'])
            ratios['peak memory'][side] = memory(figures[side]['cold']) / most
    return ratios


def whole_program(name, side, epochs, cache, data):
    """Returns the seconds of a peer's program from process start to the trained model.

    The CPU seconds are those of the whole process, its end included.
    """
    options = options_for(side, WORKLOADS[name], on_cpu=True)
    peer = Peer(side, name, options, epochs, cache, data=data, alone=True)
    try:
        while 'done' not in (message := peer.read()):
            last = message
        seconds = peer.seconds()
        cpu = peer.end()
    finally:
        peer.close()
    return last | {'total': seconds, 'cpu': cpu}


def bare_process(code):
    """Returns the seconds of a process that does nothing else."""
    started = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return {'total': time.perf_counter() - started}


def save_digits(path):
    """Saves scikit-learn's digits as a file, so that no peer imports scikit-learn for them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    np.savez(path, x=(x / 16).astype(np.float32), y=y.astype(np.int64))
