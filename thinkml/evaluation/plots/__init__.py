"""The plots of an evaluation, drawn with matplotlib's object API."""

from thinkml.evaluation.plots.calibration import calibration_curve as calibration_curve
from thinkml.evaluation.plots.confusion_matrix import confusion_matrix as confusion_matrix
from thinkml.evaluation.plots.curves import gain_curve as gain_curve
from thinkml.evaluation.plots.curves import precision_recall_curve as precision_recall_curve
from thinkml.evaluation.plots.curves import roc_curve as roc_curve
from thinkml.evaluation.plots.example_images import example_images as example_images
from thinkml.evaluation.plots.learning_curves import learning_curve as learning_curve
from thinkml.evaluation.plots.residuals import residual_plot as residual_plot
from thinkml.evaluation.plots.thresholds import threshold_curves as threshold_curves
