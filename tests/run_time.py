"""Run time of the tests: the time of each part of a run, and the files that exceed their budget.

`pytest --budgets` fails if the tests of a file take more time than its budget. Times are processor
seconds, including those of processes that a test starts and waits for. They are compared with a
fixed calculation: if that takes twice as long on a slow or busy machine, every test may take twice
as long.
"""

import os
import statistics
import time
from collections import Counter, defaultdict

import jax
import pytest

# Processor seconds that one file may take in `make test` and in `make test-slow`. A budget is about
# twice what the file takes on the reference machine: the fixed calculation and the tests do not
# slow down by the same factor on every machine.
BUDGETS = {'fast': 15, 'slow': 90}
# The files with a larger budget. They run first, so that no process ends long after the others.
LARGER = {
    'fast': {
        'tests/test_several_devices.py': 185,  # a process of eight devices, with all in that folder
        'tests/training/test_resume.py': 80,  # hundreds of checkpoints
        'tests/training/test_processes.py': 95,  # pairs of processes
        'tests/test_examples.py': 60,  # as users run them
        'tests/training/active/test_learner.py': 55,
        'tests/training/test_streams.py': 65,
        'tests/training/test_transfer.py': 45,
        'tests/several_devices/test_same_curve.py': 65,
        'tests/several_devices/test_whole_workflow.py': 50,
        'tests/training/test_trainer.py': 42,
        'tests/training/test_elements.py': 45,
        'tests/training/test_heads.py': 40,
        'tests/training/test_objective.py': 30,
        'tests/training/test_sequences.py': 30,
        'tests/training/test_periods.py': 25,
        'tests/core/test_chunked_loss.py': 30,
        'tests/core/test_elements.py': 30,
        'tests/evaluation/test_elements.py': 30,
        'tests/several_devices/test_elements.py': 70,
        'tests/several_devices/test_parameter_gathering.py': 25,
        'tests/core/test_attention.py': 25,
        'tests/core/test_augment.py': 25,
        'tests/sklearn/test_estimators.py': 45,  # a hundred checks of scikit-learn
        'tests/training/test_memory.py': 30,
        'tests/test_checkpoint.py': 30,
        'tests/test_pages.py': 45,  # trainings of a dozen pages
        'tests/test_documented_workflow.py': 25,
        'tests/training/test_options.py': 25,
        'tests/training/test_optimizers.py': 35,
        'tests/core/test_optimizers.py': 22,
        'tests/core/test_loop.py': 20,
        'tests/core/test_metrics.py': 20,
        'tests/core/test_selection.py': 20,
        'tests/data/test_stream.py': 20,
        'tests/models/test_hostile.py': 22,
        'tests/models/test_model_manager.py': 20,
        'tests/models/test_stand_in.py': 22,
        'tests/models/zoo/test_architectures.py': 20,
        'tests/several_devices/test_plan.py': 20,
        'tests/test_compilation_cache.py': 25,
        'tests/test_notebook.py': 25,
        'tests/training/test_run_logs.py': 22,
        'tests/training/test_training_metrics.py': 20,
        'tests/targets/test_programs.py': 230,  # programs of other devices
        'tests/targets/test_target_plan.py': 65,
        'tests/optimization/test_search.py': 35,  # two processes and five studies
        'tests/training/test_throughput.py': 35,
    },
    'slow': {
        'tests/training/test_kill.py': 200,  # nine kinds of runs, each in three processes
        'tests/test_several_devices.py': 640,
        'tests/several_devices/test_same_curve.py': 400,
        'tests/training/test_processes.py': 500,
        'tests/several_devices/test_whole_workflow.py': 150,
        'tests/training/test_resume.py': 160,
        'tests/training/test_streams.py': 160,
        'tests/core/test_jit.py': 120,
        'tests/models/test_hostile.py': 210,
        'tests/test_examples.py': 215,
        'tests/training/test_trainer.py': 125,
    },
}

# The result of `calculation_seconds` on the machine that the budgets were set on.
REFERENCE_SECONDS = 0.0032
# The calculation is repeated after this number of processor seconds.
_REPEAT_AFTER = 1.0

_COMPILED = '/jax/core/compile/backend_compile_duration'
_FOUND = '/jax/compilation_cache/cache_hits'


def calculation_seconds() -> float:
    """Returns the processor seconds that a fixed calculation takes at present."""

    def once():
        start = time.thread_time()
        words = {str(number): number % 7 for number in range(20_000)}
        sorted(words, key=words.get)
        return time.thread_time() - start

    return statistics.median(once() for _ in range(3))


def processor_seconds() -> float:
    """Returns the processor seconds of this process and those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class RunTime:
    """A plugin that measures each test and prints the sums at the end of the run.

    With xdist there is one in each worker, which sends its measurements with the reports, and one
    in the process that prints.
    """

    def __init__(self, config):
        self._config = config
        self._run = 'fast' if config.getoption('markexpr') == 'not slow' else 'slow'
        self._programs = Counter()
        self._calculation, self._calculated_at = calculation_seconds(), processor_seconds()
        self._before = self._now()
        self._of_files = defaultdict(Counter)
        self._skipped, self._left_out = Counter(), 0

    # --- measuring ----------------------------------------------------------------------------

    def pytest_sessionstart(self):
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)
        jax.monitoring.register_event_listener(self._count_found)

    def _count_compilation(self, event, seconds, **_):
        if event == _COMPILED:
            self._programs.update(compiled=1, compiling=seconds)

    def _count_found(self, event, **_):
        self._programs['found'] += event == _FOUND

    def _now(self):
        return Counter(self._programs, processor=processor_seconds())

    def _speed(self):
        """Returns the processor's present speed, relative to that of `REFERENCE_SECONDS`."""
        if processor_seconds() - self._calculated_at > _REPEAT_AFTER:
            self._calculation = calculation_seconds()
            self._calculated_at = processor_seconds()
        return REFERENCE_SECONDS / self._calculation

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: -self._budget(item.nodeid.partition('::')[0]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self):
        self._before = self._now()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        spent = Counter(self._now())
        spent.subtract(self._before)
        report.spent = dict(spent, budgeted=spent['processor'] * self._speed())
        self._before = self._now()
        return report

    def pytest_deselected(self, items):
        self._left_out += len(items)

    def pytest_sessionfinish(self, session):
        if hasattr(self._config, 'workeroutput'):
            self._config.workeroutput['left_out'] = self._left_out
        elif self._config.getoption('budgets') and list(self._over_budget()):
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    # --- summing up ---------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self._left_out = getattr(node, 'workeroutput', {}).get('left_out', self._left_out)

    def pytest_runtest_logreport(self, report):
        if hasattr(report, 'spent'):
            self._of_files[report.nodeid.partition('::')[0]].update(report.spent)
        if report.skipped and isinstance(report.longrepr, tuple):
            self._skipped[report.longrepr[2].removeprefix('Skipped: ')] += 1

    def _budget(self, file):
        return LARGER[self._run].get(file, BUDGETS[self._run])

    def _over_budget(self):
        for file, spent in sorted(self._of_files.items()):
            budget = self._budget(file)
            if spent['budgeted'] > budget:
                yield (
                    f'{file} takes {spent["budgeted"]:.1f} s of the processor and may take '
                    f'{budget} s in the {self._run} run (tests/run_time.py)'
                )

    @pytest.hookimpl(trylast=True)  # below the slowest tests, where the reason of a failure is seen
    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        total = sum(self._of_files.values(), Counter())
        write(
            f'{total["processor"]:.0f} s of the processor; {total["compiling"]:.0f} s of the clock '
            f"went into {total['compiled']:.0f} programs in the tests' own processes, "
            f'{total["found"]:.0f} of which were in the cache'
        )
        for line in self._over_budget():
            write(line, yellow=True)
        for reason, count in sorted(self._skipped.items()):
            write(f'{count} skipped: {reason}')
        if self._left_out and self._run == 'fast':
            write(
                f'{self._left_out} left out: `make test-slow` runs them, some in Chromium '
                '(on Debian: apt-get install chromium chromium-driver)'
            )
