"""Options of an optimizer as a whole: clipping by the norm of all gradients, and skipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULTS: dict[str, Any] = {"max_grad_norm": None, "skip_nonfinite": False}


def refuse_options_of_group(group: Mapping[str, Any], index: int) -> None:
    """Refuses a parameter group with options that only an optimizer as a whole can have.

    Raises:
        ValueError: it names the option. ``ZeroRedundancyOptimizer`` makes options of groups of all
            that it is given, and every rank's optimizer would measure its own part only.
    """
    for name in DEFAULTS:
        if name in group:
            raise ValueError(
                f"parameter group {index}: {name} is an option of the optimizer, not of a group, "
                "because it is about all gradients together; with ZeroRedundancyOptimizer, whose "
                "ranks have parts of them each, call fusedopt.clip_grad_norm_ ahead of step()"
            )


class SumsOverRanks:
    """The sums that squares of tensors belong to, and what they are over all ranks.

    The first is of tensors that every rank has as a whole. There is another one for each
    combination of process groups that a DTensor is cut up over.
    """

    def __init__(self) -> None:
        self._cuts: list[dict[str, tuple[Any, str]]] = [{}]
        self._known: dict[Any, int] = {}  # by mesh and placements

    def sum_of(self, tensor: Any) -> int:
        """The number of the sum that the squares of a tensor belong to."""
        mesh = getattr(tensor, "device_mesh", None)
        if mesh is None:
            return 0
        key = (mesh, tensor.placements)
        if key not in self._known:
            self._known[key] = self._number_of(mesh, tensor.placements)
        return self._known[key]

    def _number_of(self, mesh: Any, placements: Any) -> int:
        cuts: dict[str, tuple[Any, str]] = {}
        for dim, placement in enumerate(placements):
            if not placement.is_replicate():
                group = mesh.get_group(dim)
                cuts[group.group_name] = (group, mesh.device_type)
        for number, known in enumerate(self._cuts):
            if known.keys() == cuts.keys():
                return number
        self._cuts.append(cuts)
        return len(self._cuts) - 1

    def total(self, sums: list[list[int]]) -> list[int]:
        """Adds up everything: one all-reduce of integers for each process group."""
        rows = torch.tensor(sums, dtype=torch.int64, device="cpu")
        for name in dict.fromkeys(name for cuts in self._cuts for name in cuts):
            numbers = [number for number, cuts in enumerate(self._cuts) if name in cuts]
            group, device = self._cuts[numbers[0]][name]
            parts = rows[numbers].to(device)
            torch.distributed.all_reduce(parts, group=group)
            rows[numbers] = parts.to(rows.device)
        total: list[int] = rows.sum(0).tolist()
        return total


def new_decision(like: torch.Tensor) -> torch.Tensor:
    """Memory on a tensor's device for what is decided: the norm, the factor, whether to skip."""
    return torch.empty(3, dtype=torch.float64, device=like.device)


class Measurement(SumsOverRanks):
    """What one step is to find out about all its gradients, and what it has found.

    Args:
        max_norm: at most this norm, or None.
        skip_nonfinite: whether the step is skipped where a gradient has an infinity or a NaN.

    Attributes:
        is_done: whether the step was carried out, which a mode may have prevented.
    """

    is_done = False

    def __init__(self, max_norm: float | None, skip_nonfinite: bool) -> None:
        super().__init__()
        self.max_norm = max_norm
        self.skip_nonfinite = skip_nonfinite
        self._on_devices: list[torch.Tensor] = []

    def new_decision(self, param: torch.Tensor) -> torch.Tensor:
        """Memory on a GPU for what is decided there, or by the host for kernels to read."""
        decision = new_decision(param)
        self._on_devices.append(decision)
        return decision

    def tell(self, norm: float, factor: float, skipped: bool) -> None:
        """What the host has decided."""
        self._norm, self._skipped = norm, skipped
        for decision in self._on_devices:
            found = torch.tensor([norm, factor, skipped], dtype=torch.float64, device="cpu")
            decision.copy_(found)
        self.is_done = True

    @property
    def norm(self) -> torch.Tensor:
        """Of the gradients, before clipping; on a GPU if there is one."""
        if self._on_devices:
            return self._on_devices[0][0]
        return torch.tensor(self._norm, dtype=torch.float64, device="cpu")

    @property
    def skipped(self) -> torch.Tensor:
        """Whether the step has changed nothing; where the norm is."""
        if self._on_devices:
            return self._on_devices[0][2] != 0
        return torch.tensor(self._skipped, device="cpu")


class Clipping:
    """What an optimizer has for its options ``max_grad_norm`` and ``skip_nonfinite``."""

    _clipping: tuple[float | None, bool]
    _measurement: Measurement

    def _clip(self, max_grad_norm: float | None, skip_nonfinite: bool) -> None:
        """Keeps the options. Objects without any, such as older pickles, have no attribute."""
        if max_grad_norm is not None:
            max_grad_norm = float(max_grad_norm)
            if not max_grad_norm >= 0.0:
                raise ValueError(f"Invalid max_grad_norm value: {max_grad_norm}")
        if (max_grad_norm, bool(skip_nonfinite)) != (None, False) or "_clipping" in self.__dict__:
            self._clipping = (max_grad_norm, bool(skip_nonfinite))

    def _set_clipping(self, name: str, max_grad_norm: float | None, skip_nonfinite: bool) -> None:
        """Sets an option between steps, on an optimizer and not on what only looks like one.

        Wrappers such as Lightning's imitate the class. They find attributes that they lack on the
        optimizer, but what is set stays with them.
        """
        if "param_groups" not in self.__dict__:
            raise AttributeError(f"{name} can be set on the optimizer only, and this one wraps it")
        self._clip(max_grad_norm, skip_nonfinite)

    def _begin_measurement(self) -> Measurement | None:
        """For the step that comes; None if nothing is asked for any more."""
        return None if self._clipping == (None, False) else Measurement(*self._clipping)

    def _end_measurement(self, measurement: Measurement | None) -> None:
        """Keeps what the step has found, if it has looked."""
        if measurement is not None and measurement.is_done:
            self._measurement = measurement
        else:
            self.__dict__.pop("_measurement", None)

    @property
    def max_grad_norm(self) -> float | None:
        """The norm at which gradients are clipped. It may be set between steps.

        Raises:
            ValueError: a number below zero, or NaN, is set.
            AttributeError: it is set on a trainer's wrapper, which would keep it to itself.
        """
        norm: float | None = getattr(self, "_clipping", (None, False))[0]
        return norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._set_clipping("max_grad_norm", value, self.skip_nonfinite)

    @property
    def skip_nonfinite(self) -> bool:
        """Whether a step with an infinity or a NaN changes nothing. It may be set between steps.

        Raises:
            AttributeError: it is set on a trainer's wrapper, which would keep it to itself.
        """
        skips: bool = getattr(self, "_clipping", (None, False))[1]
        return skips

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        self._set_clipping("skip_nonfinite", self.max_grad_norm, value)

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """The norm of all gradients in the last step, before clipping: a 0-dim float64 tensor.

        On the first GPU that has parameters, without waiting for it, or else on the CPU. Replays of
        a CUDA graph write the norm of the step that was captured last. None if the last step has
        not measured it, as one with ``max_grad_norm`` or ``skip_nonfinite`` does;
        ``max_grad_norm=float("inf")`` measures and clips nothing.
        """
        measurement = getattr(self, "_measurement", None)
        return None if measurement is None else measurement.norm

    @property
    def skipped(self) -> torch.Tensor | None:
        """Whether the last step has changed nothing: a 0-dim bool tensor.

        Because of ``skip_nonfinite``, or of what a gradient scaler has found. It is where
        ``grad_norm`` is. None if the last step had neither ``max_grad_norm`` nor
        ``skip_nonfinite``. With ``fused=False`` a scaler skips a step by not calling it, of which
        this says nothing.
        """
        measurement = getattr(self, "_measurement", None)
        return None if measurement is None else measurement.skipped

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        if "_clipping" in self.__dict__:
            state["_clipping"] = self._clipping
        return state
