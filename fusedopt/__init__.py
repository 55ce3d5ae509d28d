import torch
from fusedopt import _native
from fusedopt.optimizer import _local_tensor
_native.attach(torch, _local_tensor)
from fusedopt.adam import Adam, AdamW
