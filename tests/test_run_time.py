"""The plugin that measures the tests and holds files to their budgets."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests import run_time


def config_of(markexpr='not slow', budgets=True):
    return SimpleNamespace(getoption={'markexpr': markexpr, 'budgets': budgets}.get)


def report_of(nodeid, spent, skipped=False):
    return SimpleNamespace(nodeid=nodeid, spent=spent, skipped=skipped, longrepr=None)


def exit_status_of(run):
    session = SimpleNamespace(exitstatus=0)
    run.pytest_sessionfinish(session)
    return session.exitstatus


def spend(seconds):
    return {'processor': seconds, 'budgeted': seconds}


@pytest.mark.parametrize(
    ('markexpr', 'seconds', 'is_over'),
    [('not slow', 8, True), ('not slow', 7, False), ('slow or compiled', 8, False)],
)
def test_the_tests_of_a_file_share_its_budget(markexpr, seconds, is_over):
    run = run_time.RunTime(config_of(markexpr))
    run.pytest_runtest_logreport(report_of('tests/a.py::test_one', spend(7.5)))
    run.pytest_runtest_logreport(report_of('tests/a.py::test_two', spend(seconds)))
    run.pytest_runtest_logreport(report_of('tests/b.py::test_one', spend(1)))
    assert exit_status_of(run) == (pytest.ExitCode.TESTS_FAILED if is_over else 0)
    assert [line.startswith('tests/a.py takes 15.5 s') for line in run._over_budget()] == (
        [True] if is_over else []
    )


def test_without_the_option_nothing_fails():
    run = run_time.RunTime(config_of(budgets=False))
    run.pytest_runtest_logreport(report_of('tests/a.py::test_one', spend(99)))
    assert exit_status_of(run) == 0


@pytest.mark.parametrize(('slower', 'budgeted'), [(1, 1), (2, 0.5)])
def test_where_the_calculation_takes_longer_so_may_a_test(slower, budgeted):
    clock = iter([10, 10, 10, 11, 11, 11, 11])
    # Not longer than that: the plugin that measures this test looks at the same clock.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_time, 'processor_seconds', lambda: next(clock))
        patch.setattr(run_time, 'calculation_seconds', lambda: slower * run_time.REFERENCE_SECONDS)
        run = run_time.RunTime(config_of())
        run.pytest_runtest_logstart()
        making = run.pytest_runtest_makereport()
        next(making)
        with pytest.raises(StopIteration) as made:
            making.send(SimpleNamespace())
    assert made.value.value.spent == pytest.approx({'processor': 1, 'budgeted': budgeted})


def test_what_a_started_process_takes_counts():
    code = 'import time\nwhile time.process_time() < 0.3: pass'
    before = run_time.processor_seconds()
    subprocess.run([sys.executable, '-c', code], check=True)
    assert run_time.processor_seconds() - before > 0.25  # counted in hundredths
