"""Evaluation: metrics equal to scikit-learn's, reports, and performance curves."""

from thinkml.evaluation.analysis import PerformanceAnalysis as PerformanceAnalysis
from thinkml.evaluation.evaluator import ModelEvaluator as ModelEvaluator
from thinkml.evaluation.metrics import METRICS as METRICS
from thinkml.evaluation.report import Report as Report
from thinkml.evaluation.result import Evaluation as Evaluation
