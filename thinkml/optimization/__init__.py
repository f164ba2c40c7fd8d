"""Optimization: cross-validation of a model and its settings."""

from thinkml.optimization.cross_validation import CrossValidation as CrossValidation
from thinkml.optimization.cross_validation import Fold as Fold
from thinkml.optimization.cross_validation import FoldDifference as FoldDifference
from thinkml.optimization.cross_validation import cross_validate as cross_validate
