"""Whatever is stepped, and however: the reference's bits, and no byte beside them.

By default a short, reproducible search. With ``FUSEDOPT_EXAMPLES=100000`` in the environment, so
many runs for each engine, other ones each time; what fails is shrunk, printed and kept in
``.hypothesis``. A failure that was a fault stays here as an ``@example``.
"""

from __future__ import annotations

import torch
from hypothesis import example, given

from runs import check
from scenarios import (
    Group,
    Scenario,
    Tensor,
    cpu_engines,
    emulated_cuda_engines,
    scenarios,
)


# The reference did not round what Adagrad's sum begins with as it is stored ...
@example(
    Scenario(
        "Adagrad",
        (Group((Tensor((2,), torch.bfloat16),)),),
        starts={"initial_accumulator_value": 1.08984375},
    )
)
# ... nor anything of a parameter without dimensions.
@example(Scenario("Momentum", (Group((Tensor((), torch.bfloat16), Tensor((), torch.float16))),)))
@given(scenarios(cpu_engines))
def test_the_cpus_kernels(scenario):
    check(scenario)


@given(scenarios(emulated_cuda_engines))
def test_the_cuda_kernels_body(scenario):
    check(scenario)
