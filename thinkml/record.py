"""Former home of two names of `thinkml.models`, for code that still imports them from here."""

from thinkml.model_record import attach_record as attach_record
from thinkml.model_record import record_of as record_of
