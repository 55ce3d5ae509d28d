from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

compiler: str

def attach(torch: ModuleType, local_tensor: Callable[[torch.Tensor], torch.Tensor]) -> None: ...
def step(
    rule: str,
    param_groups: list[dict[str, Any]],
    state: dict[Any, Any],
    create_state: Callable[[str, torch.Tensor, dict[str, Any]], torch.Tensor],
) -> None: ...
def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def select_isa(name: str) -> None: ...
