"""The benchmarks measure the same work on all sides, and the guard notices what is lost."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import check
import compiled
import numpy as np
import predicted_scaling
import pytest
import race
from peers import goals, measure, nets_flax, sides
from peers.by_thinkml import drawn_by_thinkml
from peers.workloads import WORKLOADS, make_job

BENCHMARKS = pathlib.Path(check.__file__).parent
PEERS = {
    'thinkml': ('by_thinkml', {}),
    'scan': ('by_hand', {'scanned': True}),
    'loop': ('by_hand', {'scanned': False}),
    'nnx': ('by_nnx', {}),
    'torch': ('by_torch', {'threads': 1}),
    'sklearn': ('by_sklearn', {'threads': 1}),
}


class Losses:
    """Takes the place of turns."""

    def __init__(self):
        self.losses = []

    def start(self):
        pass

    def over(self, loss):
        self.losses.append(float(loss))


def losses_of(peer, workload):
    """Of three epochs of one step each, in which the order of the rows doesn't matter."""
    module, options = PEERS[peer]
    turns = Losses()
    job = make_job(workload, epochs=3, rows=workload.batch_size)
    importlib.import_module(f'peers.{module}').train(job, turns, **options)
    return turns.losses


@pytest.mark.slow
@pytest.mark.parametrize('name', ['w1a', 'w2', 'w4', 'w5', 'w6'])
def test_all_peers_train_the_same_net_from_the_same_weights(name):
    workload = dataclasses.replace(WORKLOADS[name], batch_size=16)
    peers = [peer for peer in PEERS if peer != 'sklearn' or workload.net == 'mlp']
    losses = {peer: losses_of(peer, workload) for peer in peers}
    assert losses['scan'][2] < losses['scan'][0]
    for peer in peers:
        np.testing.assert_allclose(losses[peer], losses['scan'], rtol=1e-4, err_msg=peer)


def test_the_objective_is_the_step_by_hand_but_for_its_noise():
    workload = dataclasses.replace(WORKLOADS['w7'], batch_size=16, widths=(64, 8, 4))
    job = make_job(workload, epochs=3, rows=16)
    job.weights['encoder.layers.2.bias'][4:] = -20  # a noise that changes no digit
    losses = []
    for module, options in (PEERS['thinkml'], PEERS['scan']):
        turns = Losses()
        importlib.import_module(f'peers.{module}').train(job, turns, **options)
        losses.append(turns.losses)
    assert losses[1][2] < losses[1][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_gpt_does_not_see_the_next_byte():
    workload = dataclasses.replace(WORKLOADS['w6'], shape=(6,), depth=1)
    job = make_job(workload, epochs=1, rows=3)
    np.testing.assert_array_equal(job.x[:, 1:], job.y[:, :-1])
    net = nets_flax.make_net(workload, job.weights)
    before, after = net(job.x), net(np.concatenate([job.x[:, :4], job.x[:, :2]], axis=1))
    np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=1e-5, atol=1e-6)
    assert before.shape == (3, 6, 256) and not np.allclose(before[:, 5], after[:, 5])


def test_thinkmls_own_net_is_the_one_written_in_flax():
    workload = WORKLOADS['w3']
    weights = make_job(workload, epochs=1, rows=3).weights
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    outputs = [make(workload, weights)(x) for make in (nets_flax.make_net, drawn_by_thinkml)]
    np.testing.assert_allclose(*outputs, rtol=1e-6)


def test_peers_in_processes_take_turns():
    taking_part = ['scan', 'sklearn-1']
    told, failed = measure.take_turns('w1a', taking_part, on_cpu=True, rows=64, rounds=4)
    assert not failed
    assert {side: list(said['epochs']) for side, said in told.items()} == {
        'scan': [0, 1, 2, 3],
        'sklearn-1': [0, 3],
    }
    first = {side: said['epochs'][0]['loss'] for side, said in told.items()}
    # Two steps, with the rows in another order.
    assert first['scan'] == pytest.approx(first['sklearn-1'], rel=0.05)
    for said in told.values():
        assert all(
            epoch['seconds'] > 0 and epoch['peak'] > 1e7 for epoch in said['epochs'].values()
        )


def test_a_peer_that_fails_is_told_and_the_others_go_on():
    broken = dataclasses.replace(sides.SIDES['scan'], module='by_nobody')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sides.SIDES, 'scan', broken)
        told, failed = measure.take_turns(
            'w1a', ['scan', 'sklearn-1'], on_cpu=True, rows=64, rounds=4
        )
    assert list(told) == ['sklearn-1']
    assert "No module named 'peers.by_nobody'" in failed['scan']


def test_a_peer_that_is_not_installed_is_named():
    absent = dataclasses.replace(sides.SIDES['keras'], packages=('keras', 'surely_not_there'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sides.SIDES, 'keras', absent)
        taking_part, left_out = sides.sides_for(WORKLOADS['w2'], on_cpu=True)
    assert 'keras' not in taking_part
    assert 'surely_not_there not installed' in left_out['keras']
    assert 'trains MLPs alone' in left_out['sklearn']
    assert sorted([*taking_part, *left_out]) == sorted(sides.SIDES)


def test_a_ratio_is_the_median_over_rounds_of_both_but_the_first_two():
    ours = {turn: {'seconds': 1.0 + turn} for turn in range(7)}
    theirs = {0: {'seconds': 900.0}, 3: {'seconds': 8.0}, 6: {'seconds': 28.0}}
    told = {'thinkml': {'epochs': ours}, 'torch-1': {'epochs': theirs}}
    assert measure.ratio(told, 'torch-1', 'thinkml') == pytest.approx((8 / 4 + 28 / 7) / 2)
    assert measure.ratio(told, 'torch-1', 'scan') is None


def test_each_side_of_ours_is_compared_with_the_peers():
    runs = {
        ('thinkml', 'cold'): {0: {'total': 6.0}, 1: {'total': 4.0}, 2: {'total': 5.0}},
        ('thinkml-own', 'cold'): {turn: {'total': 2.0} for turn in range(3)},
        ('sklearn', 'cold'): {0: {'total': 3.0}, 2: {'total': 4.0}},
        ('Python', 'cold'): {turn: {'total': 0.1} for turn in range(3)},
    }
    runs |= {(side, 'warm'): runs[side, 'cold'] for side in sides.OURS}
    figures = {side: {'cold': {'peak': 10.0, 'device_peak': 0}} for side, _ in runs}
    ratios = {ours: measure.ratios_of_totals(runs, figures, ours) for ours in sides.OURS}
    found = measure.of_peers(ratios)
    assert found['thinkml']['total'] == {'sklearn': pytest.approx((3 / 6 + 4 / 5) / 2)}
    assert found['thinkml-own']['total'] == {'sklearn': pytest.approx((3 / 2 + 4 / 2) / 2)}
    assert 'thinkml-own' in sides.sides_for(WORKLOADS['w3'], on_cpu=True)[0]
    assert 'thinkml-own' in sides.sides_for(WORKLOADS['w1a'], on_cpu=True)[1]


def test_goals_are_judged_by_the_best_side_of_a_peer():
    leads = goals.leads_of({'time': {'keras': 2.4, 'keras-50': 1.9, 'scan': 0.9}})
    assert leads == {'time': {'keras': 1.9, 'scan': 0.9}}
    assert goals.Goal('time', 'keras', at_least=2).judged(1.9).endswith('missed')
    assert goals.Goal('time', 'keras', at_least=1.9).judged(1.9).endswith('met')
    assert goals.Goal('time', 'scan', at_most=1.05).judged(0.9).endswith('missed')
    assert goals.Goal('time', 'scan', at_most=1.05).judged(1 / 1.04).endswith('met')


LEADS = {'w1a': {'time': {'scan': 1.0, 'keras': 2.0}, 'peak memory': {'scan': 0.9}}}


@pytest.mark.parametrize(
    ('changed', 'expected'),
    [
        ({}, {}),
        ({'w1a time keras': 1.71}, {}),
        ({'w1a time keras': 5.0}, {}),
        ({'w1a time keras': 1.69}, {'w1a time keras': (2.0, 1.69)}),
        ({'w1a peak memory scan': 0.7}, {'w1a peak memory scan': (0.9, 0.7)}),
        ({'w1a time scan': None}, {'w1a time scan': (1.0, None)}),
        ({'w1a time torch': 0.1}, {}),
    ],
)
def test_the_guard_finds_what_is_lost(changed, expected):
    recorded = check.flat(LEADS)
    measured = {figure: lead for figure, lead in (recorded | changed).items() if lead is not None}
    assert check.lost(recorded, measured) == expected


def test_the_guard_goes_on_where_a_side_fails(monkeypatch, capsys):
    measured = {'leads': {}, 'failed': {'thinkml': 'out of memory'}}
    monkeypatch.setattr(check, 'measure', lambda *_, **__: measured)
    leads = check.leads_of_run(['w1a'], on_cpu=True)
    assert 'w1a: thinkml failed: out of memory' in capsys.readouterr().out
    assert check.lost(check.flat(LEADS), check.flat(leads))['w1a time scan'] == (1.0, None)


@pytest.mark.parametrize(('second', 'status'), [(1.0, 1), (1.9, 0)])
def test_the_guard_fails_if_both_runs_have_lost(tmp_path, monkeypatch, capsys, second, status):
    on = {'cpu': 'some', 'cores': 2, 'device': 'cpu', 'versions': {}, 'on_cpu': True}
    recorded = tmp_path / 'recorded.json'
    recorded.write_text(json.dumps({'machine': on, 'leads': LEADS}))
    runs = iter([1.0, second])

    def measured(names, on_cpu):
        assert list(names) == ['w1a']
        return {'w1a': LEADS['w1a'] | {'time': {'scan': 1.0, 'keras': next(runs)}}}

    monkeypatch.setattr(check, 'RECORDED', recorded)
    monkeypatch.setattr(check, 'machine', lambda: on)
    monkeypatch.setattr(check, 'leads_of_run', measured)
    monkeypatch.setattr(sys, 'argv', ['check.py'])
    assert check.main() == status
    said = capsys.readouterr().out
    assert ('LOST: w1a time keras: was 2.000, is 1.000' in said) == (status == 1)


def test_the_recorded_figures_are_those_that_are_compared():
    recorded = json.loads((BENCHMARKS / 'recorded.json').read_text())
    # W6 and W7 have not run on an idle machine yet.
    assert set(recorded['leads']) == set(WORKLOADS) - {'w6', 'w7'}
    assert all(lead > 0 for lead in check.flat(recorded['leads']).values())


@pytest.mark.slow
def test_the_race_prints_its_table(tmp_path):
    figures = tmp_path / 'figures.json'
    done = subprocess.run(
        [sys.executable, BENCHMARKS / 'race.py', 'w1a', '--rows', '64', '--rounds', '4',
         '--sides', 'thinkml,scan,sklearn-1', '--json', figures],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for title in ('ThinkML', 'scan by hand', 'scikit-learn, 1 thread'):
        assert f'| {title} |' in done.stdout
    assert 'time: ThinkML takes' in done.stdout
    written = json.loads(figures.read_text())['workloads']['w1a']
    assert set(written['leads']['thinkml']['time']) == {'scan', 'sklearn'}
    assert not written['failed']


def test_the_utilization_of_a_gpt_follows_from_its_products(capsys):
    names = 'seconds cpu cpu_over_thinkml over_scan first_epoch from_start loss peak device_peak'
    figures = dict.fromkeys(names.split(), 0.0) | {'examples_per_second': 32e4}
    measured = {
        'sides': {'thinkml': figures}, 'ratios': {}, 'epochs': 3, 'busy': None, 'left_out': {},
        'failed': {}, 'goals': [],
    }  # fmt: skip
    race.add_utilization('w6', measured, 'cpu')
    race.show('w6', measured, None)
    assert 'MFU' not in capsys.readouterr().out
    race.add_utilization('w6', measured, 'NVIDIA H200')
    layer = 4 * 128 * 128 + 2 * 128 * 512 + 2 * 128 * 128  # projections, hidden layer, attention
    flops = 3 * 2 * 32 * 128 * (4 * layer + 128 * 256)
    mfu = flops / 1e-4 / 494e12  # a step of 0.1 ms
    assert measured['sides']['thinkml']['mfu'] == pytest.approx(mfu)
    race.show('w6', measured, None)
    heads, _, row = [line.split('|') for line in capsys.readouterr().out.splitlines()[-5:-2]]
    assert [heads[3].strip(), heads[4].strip()] == ['tokens/s', 'MFU']
    assert [row[3].strip(), row[4].strip()] == ['40,960,000', f'{mfu:.1%}']


# --- compiled programs ------------------------------------------------------------------------

KEY = 'gpt/h200:8/mirrored'
PROGRAM = {
    'temporaries': 10_000_000, 'in_place': 500, 'kernels': 100, 'trip_count': 8,
    'host_transfers': 0, 'collectives': {'all-reduce': [2, 4_000_000, ['bf16']]},
}  # fmt: skip


def recorded(**changes):
    return {
        'training': PROGRAM | changes, 'evaluation': PROGRAM, 'prediction': PROGRAM,
        'rows': 32, 'devices': 8, 'flops': 32e12,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'temporaries': 12_000_000}, 'temporaries 10,000,000 -> 12,000,000'),
        ({'in_place': 499}, 'updated in place 500 -> 499'),
        ({'kernels': 110}, 'kernels 100 -> 110'),
        ({'trip_count': None}, 'loop of 8 -> None iterations'),
        ({'host_transfers': 1}, 'the loop waits for the host'),
        (
            {'collectives': {'all-reduce': [3, 6_000_000, []]}},
            'all-reduce 4,000,000 -> 6,000,000 bytes',
        ),
        ({'collectives': {'all-gather': [1, 4_000_000, []]}}, 'all-gather 0 -> 4,000,000 bytes'),
        ({'does_not_fit': 10}, 'does not fit any more'),
    ],
)
def test_a_compiled_program_that_got_worse_is_named(changes, says):
    (worse,) = compiled.losses(KEY, recorded(), recorded(**changes))
    assert worse == f'{KEY}, training: {says}'


def test_compiled_programs_may_differ_a_little():
    little = {'temporaries': 10_400_000, 'kernels': 104, 'in_place': 600}
    assert compiled.losses(KEY, recorded(), recorded(**little)) == []


def test_the_recorded_programs_are_those_of_the_cases():
    known = {'/'.join(case) for case in compiled.all_cases()}
    assert json.loads(compiled.RECORDED.read_text()).keys() <= known


def test_an_all_reduce_takes_as_long_as_the_formula_of_a_ring():
    machine = predicted_scaling.MACHINES['H200']
    link = predicted_scaling.ACCELERATORS['h200'].link_bandwidth
    step = predicted_scaling.predicted(
        recorded(), 8, 4, machine, predicted_scaling.ACCELERATORS['h200']
    )
    assert step.moving == pytest.approx(2 * 7 / 8 * 4e6 / link)
    assert step.waiting == pytest.approx(14 * machine.turn)
    assert step.compute == pytest.approx(4e12 / (0.4 * 989e12))
    assert step.limit == 'computation' and step.overlapped == step.compute
    alone = predicted_scaling.predicted(
        recorded(), 1024, 0.001, machine, predicted_scaling.ACCELERATORS['h200']
    )
    assert alone.limit == 'latency'
