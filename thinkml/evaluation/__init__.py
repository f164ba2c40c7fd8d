"""Evaluation: metrics equal to scikit-learn's, reports, and performance curves."""

from thinkml.evaluation.analysis import PerformanceAnalysis as PerformanceAnalysis
from thinkml.evaluation.comparison import Comparison as Comparison
from thinkml.evaluation.comparison import compare as compare
from thinkml.evaluation.evaluator import ModelEvaluator as ModelEvaluator
from thinkml.evaluation.metrics.registry import METRICS as METRICS
from thinkml.evaluation.report import Report as Report
from thinkml.evaluation.result import Evaluation as Evaluation
from thinkml.evaluation.result import Slice as Slice
from thinkml.evaluation.speed import Speed as Speed
from thinkml.evaluation.threshold_choice import Threshold as Threshold
from thinkml.evaluation.threshold_choice import choose_threshold as choose_threshold
