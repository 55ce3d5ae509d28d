import torch

from fusedopt.optimizer import FusedOptimizer


class Adam(FusedOptimizer, torch.optim.Adam):
    _rule = "adam"


class AdamW(FusedOptimizer, torch.optim.AdamW):
    _rule = "adam"
