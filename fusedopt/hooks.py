"""What is around a step: hooks, the profiler's event, a gradient scaler's tensors, a compiler."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = TypeVar("Step", bound=Callable[..., Any])


class _Stepping(threading.local):
    """Which optimizer this thread is stepping through the ``step`` of a subclass."""

    optimizer: torch.optim.Optimizer | None = None


stepping = _Stepping()


def untraced(step: Step) -> Step:
    """Has ``torch.compile`` call a function, and all that it calls, as it is.

    Like ``torch.compiler.disable``, which would import torch's compiler and add a frame to every
    step. Where torch does not have what this takes, the compiler finds out by trying.
    """
    step._torchdynamo_disable = True  # type: ignore[attr-defined]
    step._torchdynamo_disable_msg = "it is one native call"  # type: ignore[attr-defined]
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        strategy = eval_frame._FrameExecStrategy(skip, skip)
        eval_frame.set_code_exec_strategy(step.__code__, strategy)
    except (ImportError, AttributeError):
        pass
    return step


def observed_once(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the ``step`` that a subclass has put in place of ours.

    The outermost ``step`` is the one that hooks, profiler and gradient scaler see. Those that it
    calls, by ``super().step()``, are parts of it.
    """
    observed = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def outermost(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if stepping.optimizer is self:
            return step(self, *args, **kwargs)
        outer = stepping.optimizer
        stepping.optimizer = self
        try:
            return observed(self, *args, **kwargs)
        except BaseException:
            # As in FusedOptimizer.step, without a call.
            attributes = self.__dict__
            if "grad_scale" in attributes:
                del attributes["grad_scale"]
            if "found_inf" in attributes:
                del attributes["found_inf"]
            raise
        finally:
            stepping.optimizer = outer

    outermost.hooked = True  # type: ignore[attr-defined]
    return untraced(outermost)
