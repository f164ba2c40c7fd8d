"""Evaluation: confidence intervals, slices, comparison of models, a threshold, a report."""

from pathlib import Path

import numpy as np
from flax import nnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from thinkml.evaluation import ModelEvaluator, choose_threshold, compare
from thinkml.training import ModelTrainer, TrainingConfig

OUTPUT = Path('output')

data = load_breast_cancer()
X = ((data.data - data.data.mean(axis=0)) / data.data.std(axis=0)).astype(np.float32)
y = np.where(data.target == 0, 'malignant', 'benign')
X_rest, X_test, y_rest, y_test = train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)
X_train, X_val, y_train, y_val = train_test_split(X_rest, y_rest, random_state=0, stratify=y_rest)

rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(30, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 2, rngs=rngs))
config = TrainingConfig(epochs=40, learning_rate=0.003, early_stopping=True)
ModelTrainer(config).train(model, X_train, y_train, X_val, y_val, progress=False)

# Every metric with its confidence interval, and the metrics on large and on small tumours.
evaluator = ModelEvaluator()
radius = X_test[:, 0]
evaluation = evaluator.evaluate(
    model, X_test, y_test, slices={'large': radius > 0.5, 'small': radius <= 0.5}
)
for name, (low, high) in evaluation.confidence_intervals.items():
    print(f'{name:10} {evaluation[name]:.3f}  ({low:.3f} to {high:.3f})')
for part in evaluation.slices.values():
    print(f'{part.name}: recall {part.metrics["recall"]:.3f} of {part.num_rows} rows')

# Compare with a model of another library, on the same resamples.
other = LogisticRegression(max_iter=1000).fit(X_train, y_train)
print(compare(evaluation, evaluator.evaluate(other, X_test, y_test)))

# Choose a threshold on the validation data: here one that misses few malignant tumours.
validation = evaluator.evaluate(model, X_val, y_val)
print(choose_threshold(validation, 'precision', min_recall=0.95))

# A report to share, and plots.
evaluator.generate_report(evaluation).save(OUTPUT / 'report.html')
analysis = evaluator.analyze_performance(model, X_test, y_test)
analysis.plot_calibration(OUTPUT / 'calibration.png')
analysis.plot_roc_curve(OUTPUT / 'roc.png')
