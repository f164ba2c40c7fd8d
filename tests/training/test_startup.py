"""What happens between process start and the first step."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Prints the programs that a process compiles for its first training, and what it has imported.
FIRST_TRAINING = """
import sys
import jax, numpy as np
from flax import nnx
before = set(sys.modules)
from thinkml.training import ModelTrainer, TrainingConfig
print(*set(sys.modules) - before)
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs))
X = np.random.default_rng(0).normal(size=(90, 4))
programs = []
def heard(event, seconds, fun_name=None, **_):
    if event == '/jax/core/compile/backend_compile_duration':
        programs.append(fun_name)
jax.monitoring.register_event_duration_secs_listener(heard)
settings = {settings}
ModelTrainer(TrainingConfig(epochs=3, **settings)).train(model, X, np.arange(90) % 3)
print(*programs)
print(*set(sys.modules) - before)
"""

UNUSED = (
    'thinkml.core.active.acquisition', 'thinkml.core.active.clustering',
    'thinkml.core.active.selection', 'thinkml.core.model.exported_forward',
    'thinkml.evaluation', 'thinkml.models', 'thinkml.monitoring.monitor',
    'thinkml.training.active', 'thinkml.training.transfer.learner',
    'matplotlib', 'tensorboardX', 'sklearn', 'scipy', 'pandas', 'dm_pix', 'tensorflow', 'torch',
)  # fmt: skip


def first_training(settings='{}'):
    done = subprocess.run(
        [sys.executable, '-c', FIRST_TRAINING.format(settings=settings)], check=True, text=True,
        stdout=subprocess.PIPE, env=os.environ | {'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    imported, programs, used = (line.split() for line in done.stdout.splitlines())
    return imported, sorted(programs), used


def test_the_first_training_compiles_eight_programs_of_its_own_and_no_single_operations():
    imported, programs, used = first_training()
    assert programs == [
        'jit(<lambda>)', 'jit(_bits)', 'jit(_compute)', 'jit(_init)', 'jit(_keys)',
        'jit(_run_steps)', 'jit(empty)', 'jit(empty_metrics)',
    ]  # fmt: skip
    assert not set(UNUSED) & {*imported, *used}
    assert 'tqdm' not in imported  # the bar's, when there is one to show


def test_validation_takes_one_more():
    _, programs, _ = first_training("{'validation_split': 0.2}")
    assert len(programs) == 9


DRAW = """
import jax
from thinkml.models.zoo import create
compiled = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
create('mlp', num_classes=3, in_features=4, hidden=(8, 5))
assert not compiled, compiled
jax.numpy.zeros(3)
assert compiled
"""


def test_drawing_the_weights_of_an_mlp_of_the_zoo_compiles_nothing():
    subprocess.run([sys.executable, '-c', DRAW], check=True, env=os.environ | {'PYTHONPATH': ROOT})
