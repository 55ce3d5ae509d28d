"""What users set by environment variables, as it was when the package was imported."""

from __future__ import annotations

import os


def _read_switch(name: str, default: str) -> bool:
    value = os.environ.get(name, default)
    if value not in ("0", "1"):
        raise ValueError(f"{name} must be 0 or 1, not {value!r}")
    return value == "1"


USES_TORCH_LIBRARY = _read_switch("FUSEDOPT_TORCH_LIBRARY", "1")
USES_HUGE_PAGES = _read_switch("FUSEDOPT_HUGE_PAGES", "0")
