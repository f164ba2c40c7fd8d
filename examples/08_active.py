"""Active learning: choose 100 of 1,200 digits to label, in an experiment and then step by step."""

from pathlib import Path

import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from thinkml.training import ActiveLearner, TrainingConfig

OUTPUT = Path('output')

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_pool, X_val, y_pool, y_val = train_test_split(X, y, test_size=1 / 3, random_state=0, stratify=y)
start = [np.flatnonzero(y_pool == digit)[0] for digit in range(10)]
rest = np.setdiff1d(np.arange(len(X_pool)), start)


def new_model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))


# An experiment with known labels, compared with rows chosen at random.
config = TrainingConfig(epochs=60, batch_size=16, learning_rate=0.003)
learner = ActiveLearner(new_model(), 'margin', config=config, query_size=10)
history = learner.train(
    X_pool[start], y_pool[start], X_pool[rest], n_iterations=10, y_unlabeled=y_pool[rest],
    X_val=X_val, y_val=y_val, baseline=True, progress=False,
)  # fmt: skip
print(history)
print(f'mean accuracy {history.area():.3f}, at random {history.baseline.area():.3f}')
history.plot_learning_curve(path=OUTPUT / 'active.png')

# Unknown labels: query, teach, and keep everything on disk. No label is needed to begin.
learner = ActiveLearner(new_model(), 'margin', config=config, query_size=10)
learner.start(X_pool, X_val=X_val, y_val=y_val)
session = OUTPUT / 'session'
if session.exists():
    learner.load(session, X_pool, X_val=X_val, y_val=y_val)
else:
    learner.save(session)
for _ in range(3):
    rows = learner.query()
    learner.teach(rows, y_pool[rows])  # on disk when this returns
print(f'{len(learner.labels)} labels, accuracy {learner.fit()["val_accuracy"]:.3f}')
