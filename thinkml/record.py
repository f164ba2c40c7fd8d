"""Former home of the names of `thinkml.model_record`, for older code, pickles and model files."""

from thinkml.model_record import ArraySpec as ArraySpec
from thinkml.model_record import ColumnNames as ColumnNames
from thinkml.model_record import InputSpec as InputSpec
from thinkml.model_record import ModelRecord as ModelRecord
from thinkml.model_record import RecordReference as Carried  # noqa: F401
from thinkml.model_record import _CarryingNodes as _CarryingNodes
from thinkml.model_record import attach_record as attach_record
from thinkml.model_record import record_of as record_of
from thinkml.tasks import Task as Task
