"""scikit-learn estimators: ThinkML models in scikit-learn's pipelines, searches and ensembles."""

try:
    from sklearn.utils.validation import validate_data as _validate_data  # noqa: F401 (new in 1.6)
except ImportError as error:
    raise ImportError(
        'thinkml.sklearn: scikit-learn 1.6 or later is not installed. Install it with '
        "pip install 'scikit-learn>=1.6'."
    ) from error

from thinkml.sklearn.classifier import ThinkMLClassifier as ThinkMLClassifier
from thinkml.sklearn.regressor import ThinkMLRegressor as ThinkMLRegressor
