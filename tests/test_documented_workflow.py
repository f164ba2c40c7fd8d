"""The blocks of the user's manual run as printed, on real data."""

import textwrap

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import SmallCNN, mlp
from thinkml.errors import DeviceCountWarning, PretrainedWeightsWarning, ThinkMLWarning
from thinkml.model_record import record_of
from thinkml.models import predict
from thinkml.training import ModelTrainer, TrainingConfig

SETUP = """
    from thinkml.training import TrainingConfig

    # Create training configuration
    config = TrainingConfig(
        batch_size=32,
        epochs=100,
        learning_rate=0.001,
        optimizer='adam',
        early_stopping=True,
        validation_split=0.2,
        callbacks=['checkpoint', 'tensorboard']
    )

    # Initialize trainer
    trainer = ModelTrainer(config)
"""

BASIC_TRAINING = """
    from thinkml.training import ModelTrainer

    # Initialize trainer
    trainer = ModelTrainer()

    # Train model
    history = trainer.train(
        model=model,
        X_train=X_train,
        y_train=y_train,
        X_val=X_val,
        y_val=y_val
    )

    # Get training metrics
    metrics = trainer.get_metrics()
    print("Training Metrics:", metrics)
"""

ADVANCED_OPTIONS = """
    # Train with custom loss function
    trainer.train(
        model=model,
        X_train=X_train,
        y_train=y_train,
        loss_fn=custom_loss,
        metrics=['accuracy', 'f1']
    )

    # Train with class weights
    trainer.train(
        model=model,
        X_train=X_train,
        y_train=y_train,
        class_weights={0: 1.0, 1: 2.0}
    )

    # Train with data augmentation
    trainer.train(
        model=model,
        X_train=X_train,
        y_train=y_train,
        augmentation=True
    )
"""

MONITORING = """
    from thinkml.monitoring import TrainingMonitor

    # Initialize monitor
    monitor = TrainingMonitor()

    # Monitor training progress
    monitor.track_progress(
        model=model,
        metrics=['loss', 'accuracy'],
        interval=100  # steps
    )

    # Get real-time metrics
    current_metrics = monitor.get_current_metrics()
    print("Current Metrics:", current_metrics)

    # Plot training progress
    monitor.plot_progress()
"""

EVALUATION = """
    from thinkml.evaluation import ModelEvaluator

    # Initialize evaluator
    evaluator = ModelEvaluator()

    # Evaluate model
    evaluation = evaluator.evaluate(
        model=model,
        X_test=X_test,
        y_test=y_test,
        metrics=['accuracy', 'precision', 'recall', 'f1', 'roc_auc']
    )

    # Generate evaluation report
    report = evaluator.generate_report(evaluation)
    print("Evaluation Report:", report)

    # Analyze model performance
    analysis = evaluator.analyze_performance(
        model=model,
        X_test=X_test,
        y_test=y_test
    )

    # Get performance metrics
    metrics = analysis.get_metrics()
    print("Performance Metrics:", metrics)

    # Plot performance curves
    analysis.plot_roc_curve()
    analysis.plot_precision_recall_curve()
    analysis.plot_confusion_matrix()
"""

SAVING = """
    from thinkml.models import ModelManager

    # Initialize manager
    manager = ModelManager()

    # Save model
    manager.save_model(
        model=model,
        path='models/model_v1',
        metadata={
            'version': '1.0',
            'training_date': '2024-04-26',
            'metrics': metrics
        }
    )

    # Load model
    loaded_model = manager.load_model('models/model_v1')
"""

COMPLETE_WORKFLOW = """
    from thinkml.training import (
        TrainingConfig,
        ModelTrainer,
        TrainingMonitor
    )
    from thinkml.evaluation import ModelEvaluator
    from thinkml.models import ModelManager

    # 1. Setup Training Configuration
    config = TrainingConfig(
        batch_size=32,
        epochs=100,
        learning_rate=0.001,
        early_stopping=True
    )

    # 2. Initialize Components
    trainer = ModelTrainer(config)
    monitor = TrainingMonitor()
    evaluator = ModelEvaluator()
    manager = ModelManager()

    # 3. Train Model
    history = trainer.train(
        model=model,
        X_train=X_train,
        y_train=y_train,
        X_val=X_val,
        y_val=y_val
    )

    # 4. Monitor Training
    monitor.track_progress(model, metrics=['loss', 'accuracy'])
    monitor.plot_progress()

    # 5. Evaluate Model
    evaluation = evaluator.evaluate(
        model=model,
        X_test=X_test,
        y_test=y_test
    )
    report = evaluator.generate_report(evaluation)

    # 6. Save Model
    manager.save_model(
        model=model,
        path='models/final_model',
        metadata={
            'version': '1.0',
            'metrics': evaluation.metrics
        }
    )
"""


@pytest.fixture(params=['digits', 'breast_cancer'])
def names(request, tmp_path, monkeypatch):
    """The names the blocks use: data, a model, and a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    X, X_test, y, y_test = request.getfixturevalue(request.param)
    return {
        'X_train': X[:-100],
        'y_train': y[:-100],
        'X_val': X[-100:],
        'y_val': y[-100:],
        'X_test': X_test,
        'y_test': y_test,
        'model': mlp(X.shape[1], y.max() + 1, hidden=64),
    }


def run(block, names):
    exec(textwrap.dedent(block), names)


def test_the_complete_workflow(names):
    run(COMPLETE_WORKFLOW, names)
    assert names['evaluation'].metrics['accuracy'] >= 0.95
    assert 'accuracy' in str(names['report'])
    assert names['history'].epochs < 100, 'early stopping is on'

    from thinkml.models import predict

    loaded = names['manager'].load_model('models/final_model')
    np.testing.assert_array_equal(
        predict(loaded, names['X_test']), predict(names['model'], names['X_test'])
    )


def test_the_blocks_one_after_another(names, capsys):
    run(BASIC_TRAINING + MONITORING + EVALUATION + SAVING, names)
    shown = capsys.readouterr().out
    for heading in ('Training Metrics:', 'Current Metrics:', 'Evaluation Report:'):
        assert heading in shown
    assert names['current_metrics']['accuracy'] == names['history']['accuracy'][-1]


def custom_loss(logits, labels):
    return 2 * optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def test_the_advanced_options_on_tables(names):
    names |= {'trainer': ModelTrainer(TrainingConfig(epochs=3)), 'custom_loss': custom_loss}
    with pytest.warns(ThinkMLWarning, match='augmentation'):
        run(ADVANCED_OPTIONS, names)
    first, weighted, _ = record_of(names['model']).runs
    assert set(first) == {'loss', 'accuracy', 'f1'}
    assert weighted.epochs == 3


def test_the_advanced_options_on_images(digits):
    X, _, y, _ = digits
    names = {
        'trainer': ModelTrainer(TrainingConfig(epochs=1)),
        'custom_loss': custom_loss,
        'X_train': X.reshape(-1, 8, 8, 1),
        'y_train': y,
        'model': SmallCNN(nnx.Rngs(0)),
    }
    run(ADVANCED_OPTIONS, names)
    assert record_of(names['model']).config['augmentation'] == 'True'


def test_monitoring_before_training(names):
    with pytest.warns(ThinkMLWarning, match='nothing is recorded for this model yet'):
        run(MONITORING, names)
    assert np.isnan(names['current_metrics']['loss'])
    run(BASIC_TRAINING, names)
    assert names['monitor'].get_current_metrics()['loss'] == names['history']['loss'][-1]


DISTRIBUTED = """
    from thinkml.training import DistributedTrainer

    # Initialize distributed trainer
    trainer = DistributedTrainer(
        strategy='mirrored',
        num_gpus=2
    )

    # Train model distributed
    history = trainer.train(
        model=model,
        X_train=X_train,
        y_train=y_train
    )
"""


def test_the_distributed_block_on_one_cpu(names):
    if len(jax.devices()) == 1:
        with pytest.warns(DeviceCountWarning, match='xla_force_host_platform_device_count=2'):
            run(DISTRIBUTED, names)
    else:
        run(DISTRIBUTED, names)
    assert names['history']['loss'][-1] < names['history']['loss'][0]


@pytest.mark.parametrize(
    'names', ['breast_cancer', pytest.param('digits', marks=pytest.mark.slow)], indirect=True
)
def test_the_setup_block_with_checkpoints_and_event_files(names, tmp_path):
    run(SETUP, names | {'ModelTrainer': ModelTrainer})
    names['ModelTrainer'] = ModelTrainer
    run(SETUP + '\n    history = trainer.train(model, X_train, y_train)\n', names)
    assert 'val_loss' in names['history']
    assert list((tmp_path / 'logs').glob('run-1/*/events*'))
    newest = max(int(path.name) for path in (tmp_path / 'checkpoints/run-1').iterdir())
    assert newest == names['history'].steps


TRANSFER = """
    from thinkml.training import TransferLearner

    # Initialize transfer learner
    learner = TransferLearner(
        base_model='resnet50',
        fine_tune_layers=5
    )

    # Fine-tune model
    fine_tuned_model = learner.fine_tune(
        model=model,
        X_train=X_train,
        y_train=y_train,
        epochs=10
    )
"""


def test_the_transfer_block_on_a_model_of_its_own(names):
    with pytest.warns(ThinkMLWarning, match='no tensor in common with resnet50'):
        run(TRANSFER, names)
    assert names['fine_tuned_model'] is names['model']
    assert record_of(names['model']).runs[-1].epochs == 10


@pytest.mark.slow
def test_the_transfer_block_with_a_head_and_no_weights_at_hand(tmp_path, monkeypatch):
    for name in ('THINKML_HOME', 'HF_HOME', 'TORCH_HOME'):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('thinkml.models.pretrained.weight_sources._downloaded', lambda source: None)
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    head = nnx.Linear(2048, 2, rngs=nnx.Rngs(0))
    names = {'model': head, 'X_train': images, 'y_train': np.arange(16) % 2}
    with pytest.warns(PretrainedWeightsWarning, match='RANDOM'):
        run(TRANSFER, names)
    assert names['fine_tuned_model'].head is head
    trained = [row for row in names['learner'].summary().rows if row['trained'] == 'yes']
    assert len(trained) == 6 and len(names['learner'].summary().rows) == 54
    assert predict(names['fine_tuned_model'], images).shape == (16,)


ACTIVE = """
    from thinkml.training import ActiveLearner

    # Initialize active learner
    learner = ActiveLearner(
        model=model,
        strategy='uncertainty'
    )

    # Train with active learning
    history = learner.train(
        X_labeled=X_labeled,
        y_labeled=y_labeled,
        X_unlabeled=X_unlabeled,
        n_iterations=5
    )
"""


def test_the_active_learning_block_invents_no_label(names):
    names |= {
        'X_labeled': names['X_train'][:50],
        'y_labeled': names['y_train'][:50],
        'X_unlabeled': names['X_train'][50:],
    }
    with pytest.warns(ThinkMLWarning, match='nobody labels'):
        run(ACTIVE, names)
    assert [query.status for query in names['history']] == ['awaiting_labels'] * 5
    assert record_of(names['model']).runs[-1].epochs == 100
