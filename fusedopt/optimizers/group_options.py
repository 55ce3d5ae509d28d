"""Options of parameter groups that torch's classes have not."""

from __future__ import annotations

from typing import Any

from fusedopt.optimizers import epilogue, storage


class GroupOptions:
    """Keeps such options for the groups that torch's constructor makes next.

    Those away from their defaults become keys of the groups; other groups have torch's keys.
    """

    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]

    def _store(
        self,
        state_bits: int | None,
        stochastic_rounding: bool,
        master_weights: bool,
        seed: int,
    ) -> None:
        """How parameters and states are stored."""
        self._asked_for = storage.asked_for(
            {
                "state_bits": state_bits,
                "stochastic_rounding": stochastic_rounding,
                "master_weights": master_weights,
                "seed": seed,
            }
        )

    def _finish(self, l1: float, ema_decay: float | None) -> None:
        """What follows a step."""
        self._asked_for |= epilogue.asked_for_in({"l1": l1, "ema_decay": ema_decay})

    def _set_option(self, name: str, value: Any) -> None:
        """Adds an option to the groups of a class that torch has without it.

        For a value other than the default. Otherwise groups have the keys of torch's.
        """
        self.defaults[name] = value
        for group in self.param_groups:
            group.setdefault(name, value)
