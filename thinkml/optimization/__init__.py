"""Optimization: cross-validation, and searches for the best settings of a training."""

from thinkml.optimization.cross_validation import CrossValidation as CrossValidation
from thinkml.optimization.cross_validation import Fold as Fold
from thinkml.optimization.cross_validation import FoldDifference as FoldDifference
from thinkml.optimization.cross_validation import cross_validate as cross_validate
from thinkml.optimization.search import BayesianOptimization as BayesianOptimization
from thinkml.optimization.search import GeneticOptimization as GeneticOptimization
from thinkml.optimization.search import GridSearch as GridSearch
from thinkml.optimization.search import RandomSearch as RandomSearch
from thinkml.optimization.search_result import SearchResult as SearchResult
from thinkml.optimization.search_result import Trial as Trial
from thinkml.optimization.search_space import SearchSpace as SearchSpace
