"""From what people have (arrays, lists, frames) to checked and encoded arrays, and back."""

from thinkml.data.arrays import as_dtype_of as as_dtype_of
from thinkml.data.arrays import check_inputs as check_inputs
from thinkml.data.arrays import check_inputs_of as check_inputs_of
from thinkml.data.arrays import check_lengths as check_lengths
from thinkml.data.arrays import fingerprint as fingerprint
from thinkml.data.placement import capacity as capacity
from thinkml.data.placement import check_fits as check_fits
from thinkml.data.placement import place as place
from thinkml.data.placement import select as select
from thinkml.data.split import split_rows as split_rows
from thinkml.data.targets import check_targets as check_targets
from thinkml.data.targets import decode as decode
from thinkml.data.targets import encode_targets as encode_targets
from thinkml.data.targets import infer_task as infer_task
from thinkml.data.targets import probabilities as probabilities
