from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch

compiler: str

def attach(
    torch: ModuleType,
    local_tensor: Callable[[torch.Tensor, torch.Tensor | None, bool], torch.Tensor],
    use_library: bool = True,
) -> None: ...
def torch_answers() -> list[str]: ...
def step(
    rule: str,
    param_groups: list[dict[str, Any]],
    state: dict[Any, Any],
    create_state: Callable[
        [str, torch.Tensor, dict[str, Any]], torch.Tensor | tuple[torch.Tensor, float]
    ],
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None: ...
def check_step(
    rule: str,
    param_groups: list[dict[str, Any]],
    state: dict[Any, Any],
    create_state: Callable[
        [str, torch.Tensor, dict[str, Any]], torch.Tensor | tuple[torch.Tensor, float]
    ],
) -> None: ...

class Excursion(AbstractContextManager[None]):
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        prepare: Callable[[], tuple[list[tuple[Any, ...]], Callable[[], None]]],
    ) -> None: ...
    def __exit__(self, *exception: object) -> None: ...

def end_excursion(optimizer: torch.optim.Optimizer) -> None: ...
def load_cuda() -> None: ...
def use_engine_on_cpu(engine: object) -> None: ...
def is_forked() -> bool: ...
def use_huge_pages(wanted: bool) -> None: ...
def available_isas() -> list[str]: ...
def selected_isa() -> str: ...
def select_isa(name: str) -> None: ...
