"""Predictions of the time of a step on 8 to 1,024 devices, from compiled programs; no measurement.

    python benchmarks/predicted_scaling.py

The operations of a step and the bytes of its exchanges are those that `compiled.py` found in the
programs for eight H200s and for TPU slices (compiled.json). Peak rates and links are those of
`thinkml.training.accelerators`. What a datasheet does not say is in `MACHINES`: put the numbers of
your own machines there.
"""

import json
import math
import pathlib
import sys
from typing import NamedTuple

from thinkml.training.accelerators import ACCELERATORS

COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
# The part of the peak rate at which the products of a real step run; an assumption.
USED = 0.4


class Machine(NamedTuple):
    """Devices with fast links between them, and slower links to other machines.

    Attributes:
        target: the case of compiled.json that the programs are taken from.
        devices: the devices of a machine, or of the largest slice of TPUs.
        between: bytes per second and device between machines.
        turn: seconds of latency of a turn inside a machine.
        turn_between: seconds of latency of a turn between machines.
        torus: True if the devices are in a square with links to their neighbours.
    """

    target: str
    devices: int
    between: float
    turn: float
    turn_between: float
    torus: bool


# A network card of 400 Gb/s for each GPU. A slice of v5e has at most 256 chips; to other slices a
# host of 8 chips has 100 Gb/s.
MACHINES = {
    'H200': Machine('h200:8', 8, 50e9, 3e-6, 10e-6, torus=False),
    'TPU v5e': Machine('v5e:16x16', 256, 100e9 / 8 / 8, 1e-6, 50e-6, torus=True),
}
NETS = {'resnet50': 8192, 'vit_b16': 4096, 'gpt': 512}  # rows of all devices in strong scaling
TITLES = {'resnet50': 'ResNet-50', 'vit_b16': 'ViT-B/16', 'gpt': 'GPT of 124M parameters'}


class Step(NamedTuple):
    """The predicted seconds of a step: its computation, and the two parts of its exchanges."""

    compute: float
    moving: float
    waiting: float

    @property
    def exchange(self):
        return self.moving + self.waiting

    @property
    def alone(self):
        """Returns the time if nothing overlaps."""
        return self.compute + self.exchange

    @property
    def overlapped(self):
        """Returns the time if exchanges overlap with the backward pass, two thirds of the rest."""
        return self.alone - min(2 / 3 * self.compute, self.exchange)

    @property
    def limit(self):
        if self.compute >= self.exchange:
            return 'computation'
        return 'bytes' if self.moving >= self.waiting else 'latency'


def pass_seconds(num_bytes, num_devices, machine, link):
    """Returns the seconds of an all-gather or a reduce-scatter: bytes, and turns of a ring.

    Devices exchange inside their machine first, and then each its part with other machines. An
    all-reduce is two of these (Patarasuk and Yuan, 2009, Bandwidth optimal all-reduce algorithms
    for clusters of workstations). In a torus the turns go along its sides.
    """
    inside = min(num_devices, machine.devices)
    machines = math.ceil(num_devices / inside)
    turns = 2 * (math.isqrt(inside) - 1) if machine.torus else inside - 1
    moving = (inside - 1) / inside * num_bytes / link
    waiting = turns * machine.turn
    if machines > 1:
        moving += (machines - 1) / machines * num_bytes / inside / machine.between
        waiting += (machines - 1) * machine.turn_between
    return moving, waiting


def predicted(facts, num_devices, rows, machine, accelerator):
    """Returns the predicted step of ``rows`` rows on each device."""
    flops = facts['flops'] / facts['rows'] * rows
    moving = waiting = 0.0
    for kind, (_, num_bytes, _) in facts['training']['collectives'].items():
        passes = 2 if kind == 'all-reduce' else 1
        of_pass = pass_seconds(num_bytes, num_devices, machine, accelerator.link_bandwidth)
        moving, waiting = moving + passes * of_pass[0], waiting + passes * of_pass[1]
    return Step(flops / (USED * accelerator.peak_flops['bfloat16']), moving, waiting)


def row(step, alone):
    """Returns the cells of a step, beside the same work on one device without exchanges."""
    least, best = alone / step.alone, alone / step.overlapped
    return [f'{step.compute * 1e3:.2f}', f'{step.exchange * 1e3:.2f}', f'{least:.2f}-{best:.2f}']


def print_net(net, recorded):
    """Prints the predictions for a net as a table."""
    times = 'computation ms | exchange ms | efficiency'
    for name, machine in MACHINES.items():
        kind = machine.target.split(':')[0]
        accelerator = ACCELERATORS[kind]
        for strategy in ('mirrored', 'fsdp'):
            facts = recorded.get(f'{net}/{machine.target}/{strategy}')
            if facts is None or 'does_not_fit' in facts['training']:
                continue
            rows = facts['rows'] // facts['devices']
            exchanged = sum(b for _, b, _ in facts['training']['collectives'].values())
            gflop = facts['flops'] / facts['rows'] / 1e9
            print(f'\n**{TITLES[net]}, {name}, `{strategy!r}`**: {gflop:,.1f} GFLOP for a row, '
                  f'{exchanged / 1e6:,.0f} MB exchanged in a step\n')  # fmt: skip
            print(f'| devices | {rows} rows each: {times} | {NETS[net]:,} rows in all: {times} | '
                  'limit |')  # fmt: skip
            print('| ---: ' * 7 + '| --- |')
            for count in COUNTS:
                if NETS[net] < count:  # not a row for each device
                    continue
                weak = predicted(facts, count, rows, machine, accelerator)
                strong = predicted(facts, count, NETS[net] / count, machine, accelerator)
                cells = [*row(weak, weak.compute), *row(strong, strong.compute), strong.limit]
                print(f'| {count:,} | {" | ".join(cells)} |')


def print_bytes(recorded):
    """Prints the bytes that a step exchanges by the number of devices, as compiled."""
    print('| net | strategy | target | devices | exchanged in a step |')
    print('| --- | --- | --- | ---: | --- |')
    for key, facts in recorded.items():
        net, target, strategy = key.split('/')
        if net in NETS and facts['devices'] > 1 and 'does_not_fit' not in facts['training']:
            kinds = facts['training']['collectives'].items()
            text = ', '.join(f'{count} {kind}, {b / 1e6:,.1f} MB' for kind, (count, b, _) in kinds)
            print(f'| {net} | {strategy} | {target} | {facts["devices"]} | {text} |')


def main():
    recorded = json.loads((pathlib.Path(__file__).parent / 'compiled.json').read_text())
    print_bytes(recorded)
    for net in NETS:
        print_net(net, recorded)


if __name__ == '__main__':
    sys.exit(main())
