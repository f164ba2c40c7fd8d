"""The complete workflow on real data: configure, train, monitor, evaluate, save, load.

Trains a small network on scikit-learn's handwritten digits (8 x 8 pixels, ten classes), and writes
plots, a report and the model to the folder ``output``.
"""

from pathlib import Path

from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from thinkml.evaluation import ModelEvaluator
from thinkml.models import ModelManager, predict
from thinkml.training import ModelTrainer, TrainingConfig, TrainingMonitor

OUTPUT = Path('output')
OUTPUT.mkdir(exist_ok=True)

# Data and a model. The model may be any flax.nnx.Module.
X, y = load_digits(return_X_y=True)
X = X / 16
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
X_train, X_val, y_train, y_val = train_test_split(X_train, y_train, test_size=0.2, random_state=0)

rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(64, 128, rngs=rngs),
    nnx.relu,
    nnx.Linear(128, 64, rngs=rngs),
    nnx.relu,
    nnx.Linear(64, 10, rngs=rngs),
)

# 1. Setup Training Configuration
config = TrainingConfig(
    batch_size=32,
    epochs=100,
    learning_rate=0.001,
    early_stopping=True,
)

# 2. Initialize Components
trainer = ModelTrainer(config)
monitor = TrainingMonitor()
evaluator = ModelEvaluator()
manager = ModelManager()

# 3. Train Model
history = trainer.train(model=model, X_train=X_train, y_train=y_train, X_val=X_val, y_val=y_val)
print('Training:', history)
print('Last epoch:', {name: round(value, 4) for name, value in trainer.get_metrics().items()})

# 4. Monitor Training
monitor.track_progress(model, metrics=['loss', 'accuracy'])
monitor.plot_progress(path=OUTPUT / 'progress.png')

# 5. Evaluate Model
evaluation = evaluator.evaluate(model=model, X_test=X_test, y_test=y_test)
report = evaluator.generate_report(evaluation)
report.save(OUTPUT / 'report.txt')
print(report)
analysis = evaluator.analyze_performance(model=model, X_test=X_test, y_test=y_test)
analysis.plot_confusion_matrix(path=OUTPUT / 'confusion_matrix.png')
analysis.plot_roc_curve(path=OUTPUT / 'roc_curve.png')

# 6. Save Model
manager.save_model(
    model=model,
    path=OUTPUT / 'digits_model',
    metadata={'version': '1.0', 'metrics': evaluation.metrics},
    overwrite=True,
)

# 7. Load it: no class is passed, and the predictions are the same.
loaded = manager.load_model(OUTPUT / 'digits_model')
assert (predict(loaded, X_test) == predict(model, X_test)).all()
print('First five test digits:', predict(loaded, X_test[:5]), 'truth:', y_test[:5])
print('Written to', OUTPUT.resolve(), ':', sorted(path.name for path in OUTPUT.iterdir()))
