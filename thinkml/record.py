"""Names of `thinkml.models`, for code that imports them from here as older pages did."""

from thinkml.model_record import attach_record as attach_record
from thinkml.model_record import record_of as record_of
