"""Versions of a model under one name: save, compare, tag, load and continue training."""

import tempfile

import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from thinkml.evaluation import ModelEvaluator
from thinkml.models import ModelManager, predict
from thinkml.training import ModelTrainer, TrainingConfig

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)


def make_model(width):
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(64, width, rngs=rngs), nnx.relu, nnx.Linear(width, 10, rngs=rngs)
    )


trainer = ModelTrainer(TrainingConfig(epochs=5))
evaluator = ModelEvaluator()

with tempfile.TemporaryDirectory() as root:
    manager = ModelManager(root)
    for width in (16, 64):
        model = make_model(width)
        trainer.train(model, X_train, y_train, progress=False)
        evaluation = evaluator.evaluate(model, X_test, y_test, ['accuracy', 'f1'])
        notes = {'width': width, **evaluation.metrics}
        manager.save_model(model, 'digits', notes, include_optimizer=True)
    for row in manager.versions('digits'):
        print(row['model'], row['metadata.width'], f'{row["metadata.accuracy"]:.3f}')

    manager.tag('digits@2', 'production')
    model = manager.load_model('digits@production', include_optimizer=True)
    trainer.train(model, X_train, y_train, progress=False)  # continues with Adam's moments
    manager.save_model(model, 'digits', {'width': 64})
    print(manager.inspect('digits@latest').parent)
    print(predict(model, X_test[:5]), y_test[:5])

    # Load weights into a model you made, as a notebook must for classes it defines itself.
    mine = manager.load_model('digits', into=make_model(64))
    np.testing.assert_array_equal(predict(mine, X_test), predict(model, X_test))

    # Export the forward pass for other programs.
    exported = manager.export('digits', f'{root}/digits.mlirbc')
    print(f'{exported.name}: {exported.stat().st_size:,} bytes')
