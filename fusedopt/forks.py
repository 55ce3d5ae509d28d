"""What is left of torch's threads in a process that was forked: nothing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from fusedopt import _native

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def torch_on_one_thread_if_forked() -> Iterator[None]:
    """Keeps torch's operations on large tensors from waiting for threads that are not there.

    The child of a fork has one thread, but OpenMP's pool in it still counts on those of the parent.
    """
    count = torch.get_num_threads()
    if not _native.is_forked() or count == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
