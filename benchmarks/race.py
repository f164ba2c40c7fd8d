"""ThinkML beside its alternatives: the same nets, weights, data, Adam and shuffling.

    python benchmarks/race.py                  # everything, about 20 minutes on 2 idle cores
    python benchmarks/race.py w1a w6           # these workloads
    python benchmarks/race.py w2 --with-scan   # on a CPU also the slow scan over convolutions
    python benchmarks/race.py w4 --rows 50000  # more rows, for a GPU
    python benchmarks/race.py --sides thinkml,scan,torch-1 --json FILE

Each peer runs in its own process and takes turns with the others epoch by epoch, inside its
framework's own loop, so that a busy machine slows all of them. A ratio is the median over the
rounds in which both trained an epoch, without the first two; slow peers train in every third round.
All record the loss; ThinkML also records accuracy, with history and progress bar. The hand-written
sides and `nnx.jit` drop the rows of an incomplete last batch; the others train on them. W3 is whole
programs, from process start to the trained model. "From start" is the time from process start to
the end of the first epoch. JAX's persistent compilation cache is empty for each peer, so none finds
compiled programs. On an accelerator with a known peak rate, "MFU" is the model FLOP utilization, by
the operations of the step by hand.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peers.goals import goals_of, leads_of
from peers.measure import race, totals
from peers.sides import CORES, SIDES, sides_for
from peers.workloads import WORKLOADS

from thinkml.training.accelerators import accelerator_of
from thinkml.training.model_flops import flop_utilization

PACKAGES = (
    'thinkml', 'jax', 'flax', 'optax', 'keras', 'torch', 'lightning', 'skorch', 'scikit-learn',
    'numpy',
)  # fmt: skip


def machine():
    """Returns the machine and the versions of the measurement."""
    code = 'import jax; device = jax.devices()[0]; print(device.platform, device.device_kind)'
    told = subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True,
        env=os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
    )  # fmt: skip
    kind, device = told.stdout.strip().split(maxsplit=1)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        'cpu': cpu_name(), 'cores': CORES, 'device': device, 'on_cpu': kind == 'cpu',
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(), 'versions': versions,
        'date': time.strftime('%Y-%m-%d'),
    }  # fmt: skip


def cpu_name():
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists() and 'model name' in (text := cpuinfo.read_text()):
        return text.split('model name')[1].split('\n')[0].strip('\t :')
    return platform.processor() or platform.machine()


def measure(name, on_cpu, *, rows=None, rounds=None, with_scan=False, only=None):
    """Returns the figures of a workload, the sides left out with reasons, and its goals."""
    workload = WORKLOADS[name]
    sides, left_out = sides_for(workload, on_cpu, with_scan)
    if only:
        left_out = {side: why for side, why in left_out.items() if side in only}
        sides = [side for side in sides if side in only]
    if workload.rows is None:
        measured = totals(name, sides, epochs=rounds)
    else:
        measured = race(name, sides, on_cpu, rows, rounds)
    leads = {ours: leads_of(ratios) for ours, ratios in measured['ratios'].items()}
    goals = [
        goal.judged(of_ours[goal.what][goal.peer], SIDES[ours].title)
        for ours, of_ours in leads.items()
        for goal in goals_of(name, on_cpu)
        if goal.peer in of_ours.get(goal.what, {})
    ]
    return measured | {'left_out': left_out, 'leads': leads, 'goals': goals}


def add_utilization(name, measured, device):
    """Adds the model FLOP utilization of each side, if the device has a known peak rate."""
    if accelerator_of(device) is None or WORKLOADS[name].rows is None:
        return
    flops = flops_of_step(name)
    for of_side in measured['sides'].values():
        seconds = WORKLOADS[name].batch_size / of_side['examples_per_second']
        of_side['mfu'] = flop_utilization(flops, seconds, device)


def flops_of_step(name):
    """Returns the operations of a step by dtype, counted in a process that uses no accelerator."""
    code = f'import json, peers.by_hand; print(json.dumps(peers.by_hand.flops_of_step({name!r})))'
    told = subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parent, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )  # fmt: skip
    return json.loads(told.stdout)


def show(name, measured, rows):
    workload = WORKLOADS[name]
    num_rows = '1,797' if workload.rows is None else f'{rows or workload.rows:,}'
    batches = f'{num_rows} rows, batch {workload.batch_size}'
    print(f'\n### {name.upper()}: {workload.title}; {batches}\n')
    if workload.rows is None:
        show_totals(measured)
    else:
        show_epochs(measured, workload.num_tokens)
    busy = measured['busy']
    told = 'unknown' if busy is None else f'{busy:.2f} of {os.cpu_count()} cores'
    print(f'\nUsed by other work meanwhile: {told}.')
    for side, why in measured['left_out'].items():
        print(f'Left out: {SIDES[side].title} ({why}).')
    for side, why in measured['failed'].items():
        print(f'FAILED: {SIDES[side].title}: {why}')
    for goal in measured['goals']:
        print(f'- {goal}')


def show_epochs(measured, num_tokens=None):
    reference = 'scan' if 'scan' in measured['sides'] else 'loop'
    heads = [
        'side', 'examples/s', 's/epoch', 'CPU s', 'times ThinkML', 'by CPU', f'times {reference}',
        'first epoch', 'from start', 'peak MB', f'loss after {measured["epochs"]}',
    ]  # fmt: skip
    if any(of_side['device_peak'] for of_side in measured['sides'].values()):
        heads.insert(-1, 'device MB')
    if num_tokens:
        heads.insert(2, 'tokens/s')
    has_utilization = all('mfu' in of_side for of_side in measured['sides'].values())
    if has_utilization:
        heads.insert(heads.index('s/epoch'), 'MFU')
    rows, beside = [], beside_thinkml(measured)
    for side, of_side in measured['sides'].items():
        row = [
            SIDES[side].title, f'{of_side["examples_per_second"]:,.0f}',
            f'{of_side["seconds"]:.3f}', f'{of_side["cpu"]:.3f}',
            shown(beside('time', side)), shown(of_side['cpu_over_thinkml']),
            shown(of_side['over_scan']), f'{of_side["first_epoch"]:.2f}',
            f'{of_side["from_start"]:.2f}', f'{of_side["peak"] / 1e6:.0f}',
            f'{of_side["loss"]:.4f}',
        ]  # fmt: skip
        if 'device MB' in heads:
            row.insert(-1, f'{of_side["device_peak"] / 1e6:.0f}')
        if num_tokens:
            row.insert(2, f'{of_side["examples_per_second"] * num_tokens:,.0f}')
        if has_utilization:
            row.insert(heads.index('MFU'), f'{of_side["mfu"]:.1%}')
        rows.append(row)
    show_table(heads, rows)


def show_totals(measured):
    heads = ['side', 'cold s', 'CPU s', 'times ThinkML', 'warm s', 'CPU s', 'times ThinkML warm',
             'peak MB', 'final loss']  # fmt: skip
    rows, beside = [], beside_thinkml(measured)
    for side, states in measured['sides'].items():
        cold, warm = states['cold'], states.get('warm', {})
        rows.append([
            SIDES[side].title if side in SIDES else f'{side} alone',
            shown(cold['total']), shown(cold.get('cpu')),
            shown(beside('total', side)),
            shown(warm.get('total')), shown(warm.get('cpu')),
            shown(beside('warm total', side)),
            f'{cold["peak"] / 1e6:.0f}' if 'peak' in cold else '',
            f'{cold["loss"]:.4f}' if 'loss' in cold else '',
        ])  # fmt: skip
    show_table(heads, rows)


def beside_thinkml(measured):
    """Returns ``beside(what, side)``: a multiple of ThinkML's figure, or None if unknown."""
    ratios = measured['ratios'].get('thinkml', {})
    return lambda what, side: ratios.get(what, {}).get(side)


def shown(value):
    return '' if value is None else f'{value:.2f}'


def show_table(heads, rows):
    print(f'| {" | ".join(heads)} |')
    print(f'| --- |{" ---: |" * (len(heads) - 1)}')
    for row in rows:
        print(f'| {" | ".join(row)} |')


def known(name):
    """Returns a workload's name, for argparse."""
    if name not in WORKLOADS:
        raise argparse.ArgumentTypeError(f'{name} is none of {", ".join(WORKLOADS)}')
    return name


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('workloads', nargs='*', type=known, help=', '.join(WORKLOADS))
    parser.add_argument('--rows', type=int, help="of the data, but for W3's")
    parser.add_argument('--rounds', type=int, help='at least 4; in W3 the epochs')
    parser.add_argument('--with-scan', action='store_true', help='over convolutions on a CPU')
    parser.add_argument('--sides', type=lambda text: text.split(','), help=', '.join(SIDES))
    parser.add_argument('--json', type=Path, help='where the figures are written')
    asked = parser.parse_args()
    if unknown := set(asked.sides or ()) - SIDES.keys():
        parser.error(f'--sides: {", ".join(sorted(unknown))} is none of {", ".join(SIDES)}')
    if asked.rounds is not None and asked.rounds < 4:
        parser.error('--rounds: at least 4: two are left out, and slow peers train in the 4th')
    on = machine()
    versions = ', '.join(f'{name} {number}' for name, number in on['versions'].items() if number)
    print(f'{on["cpu"]}, {on["cores"]} cores, {on["device"]}, {on["system"]}, load '
          f'{os.getloadavg()[0]:.1f}; Python {on["python"]}, {versions}')  # fmt: skip
    workloads = {}
    for name in asked.workloads or WORKLOADS:
        workloads[name] = measure(
            name, on['on_cpu'], rows=asked.rows, rounds=asked.rounds, with_scan=asked.with_scan,
            only=asked.sides,
        )  # fmt: skip
        add_utilization(name, workloads[name], on['device'])
        show(name, workloads[name], asked.rows)
        sys.stdout.flush()
        if asked.json:
            asked.json.write_text(json.dumps({'machine': on, 'workloads': workloads}, indent=1))
    return any(measured['failed'] for measured in workloads.values())


if __name__ == '__main__':
    sys.exit(main())
