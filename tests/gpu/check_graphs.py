"""Steps in CUDA graphs: a replay is a step, with the bits of a step on the CPU."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from gpu_helpers import (
    GPU,
    LARGEST_CASES,
    assert_same,
    capture,
    feed,
    gradient_steps,
    mixed_tensors,
    optimizer_on,
    params_of,
    step_all,
    twins,
)
from helpers import snapshot

ADAM = next(case for case in CASES if case.row.name == "Adam" and case.options)
COUNTING = [case for case in LARGEST_CASES if case.row.name not in ("SGD", "Momentum", "Nesterov")]


def replay(graph, cpu, steps, gpu):
    """Replays the GPU's step and steps the CPU with the same gradients."""
    for grads in steps:
        feed(grads, gpu, cpu)
        graph.replay()
        cpu.step()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_replays_are_steps(case):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, capturable=True)
    steps = gradient_steps(tensors, 14)
    for grads in steps[:3]:
        step_all(grads, gpu, cpu)
    graph = capture(gpu)
    assert_same(gpu, cpu, "a capture changes nothing")
    replay(graph, cpu, steps[3:12], gpu)
    assert_same(gpu, cpu, "replays")
    for grads in steps[12:]:
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu, "steps after replays")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replays_on_large_tensors(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(size).to(dtype) for size in (100_003, 4096, 513)]
    gpu, cpu = twins(ADAM, tensors, capturable=True)
    first, *others = gradient_steps(tensors, 6)
    step_all(first, gpu, cpu)
    replay(capture(gpu), cpu, others, gpu)
    assert_same(gpu, cpu)


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_a_scheduler_changes_the_learning_rate_between_replays(case):
    tensors = mixed_tensors()
    lr = torch.tensor(0.5)
    gpu = optimizer_on(GPU, case, tensors, lr=lr.to(GPU), capturable=True)
    cpu = optimizer_on("cpu", case, tensors, lr=lr.clone())
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        for optimizer in (gpu, cpu)
    ]
    steps = gradient_steps(tensors, 10)
    for grads in steps[:2]:
        step_all(grads, gpu, cpu)
        for scheduler in schedulers:
            scheduler.step()
    graph = capture(gpu)
    for grads in steps[2:]:
        replay(graph, cpu, [grads], gpu)
        for scheduler in schedulers:
            scheduler.step()
    assert gpu.param_groups[0]["lr"].item() == cpu.param_groups[0]["lr"].item() == 0.5**11
    assert_same(gpu, cpu)


@pytest.mark.parametrize("count", [300, 1500])
def test_many_tensors_in_a_graph(count):
    """The table of many tensors lives as long as the graph, whatever else is stepped meanwhile."""
    torch.manual_seed(0)
    tensors = [torch.randn(1 + i % 50) for i in range(count)]
    gpu, cpu = twins(ADAM, tensors, capturable=True)
    others = twins(ADAM, [tensor + 1 for tensor in tensors])
    steps = gradient_steps(tensors, 8)
    for grads in steps[:2]:
        step_all(grads, gpu, cpu, *others)
    graph = capture(gpu)
    for grads in steps[2:]:
        for _ in range(10):
            step_all(grads, *others)
        replay(graph, cpu, [grads], gpu)
    assert_same(gpu, cpu)
    assert_same(*others)


@pytest.mark.parametrize("count", [5, 1500])
def test_two_graphs_at_once_and_freed_graphs(count):
    torch.manual_seed(0)
    pairs = []
    for shift in (0, 1):
        tensors = [torch.randn(1 + (i + shift) % 50) for i in range(count)]
        pairs.append((twins(ADAM, tensors, capturable=True), gradient_steps(tensors, 9)))
    graphs = []
    for (gpu, cpu), steps in pairs:
        step_all(steps[0], gpu, cpu)
        graphs.append(capture(gpu))
    for index in range(1, 5):
        for ((gpu, cpu), steps), graph in zip(pairs, graphs, strict=True):
            replay(graph, cpu, steps[index : index + 1], gpu)
    torch.cuda.synchronize()
    (gpu, cpu), steps = pairs[0]
    graphs.pop(0)
    del graph  # the loop's, which is the second
    gc.collect()
    step_all(steps[5], gpu, cpu)
    graphs.append(capture(gpu))
    replay(graphs[1], cpu, steps[6:], gpu)
    (other, other_cpu), other_steps = pairs[1]
    replay(graphs[0], other_cpu, other_steps[5:], other)
    for (gpu, cpu), _ in pairs:
        assert_same(gpu, cpu)


def test_several_steps_in_one_graph():
    tensors = mixed_tensors()
    gpu, cpu = twins(ADAM, tensors, capturable=True)
    first, *others = gradient_steps(tensors, 4)
    step_all(first, gpu, cpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            gpu.step()
    for grads in others:
        feed(grads, gpu, cpu)
        graph.replay()
        for _ in range(3):
            cpu.step()
    assert_same(gpu, cpu)


def test_a_whole_training_step_in_one_graph():
    """Backward pass and step, with gradients that live in the graph's memory."""
    torch.manual_seed(0)
    results = []
    inputs = [torch.randn(8, 5, device=GPU) for _ in range(6)]
    for in_graph in (False, True):
        torch.manual_seed(1)
        model = torch.nn.Linear(5, 3).to(GPU)
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1, capturable=True)
        batch = inputs[0].clone()

        def train(model=model, optimizer=optimizer, batch=batch):
            optimizer.zero_grad(set_to_none=True)
            model(batch).square().mean().backward()
            optimizer.step()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                train()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if in_graph:
            with torch.cuda.graph(graph):
                train()
        for values in inputs:
            batch.copy_(values)
            if in_graph:
                graph.replay()
            else:
                train()
        results.append([param.detach().cpu() for param in model.parameters()])
    # The products of a matrix may be summed in another order in a graph.
    for eager, replayed in zip(*results, strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-5, atol=1e-6)


def refused(optimizer, message):
    """Captures a step that must be refused, and shows that nothing has changed."""
    torch.cuda.synchronize()
    before = snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the graph is empty
        with pytest.raises(RuntimeError, match=message):
            capture(optimizer)
    torch.cuda.synchronize()
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("case", COUNTING, ids=str)
def test_what_counts_steps_and_is_not_capturable_is_refused(case):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors)
    first, *others = gradient_steps(tensors, 4)
    step_all(first, gpu, cpu)
    refused(
        gpu,
        r"Attempting CUDA graph capture of step\(\) for an instance of "
        f"{case.row.name} but param_groups' capturable is False",
    )
    for grads in others:
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu, "steps after the refusal")


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_a_first_step_in_a_graph_is_refused(case):
    """Its states would be zeroed again by every replay."""
    if case.row.name == "Adagrad":
        return  # whose constructor creates all state
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, capturable=True)
    refused(gpu, "captur")
    for grads in gradient_steps(tensors, 3):
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu, "steps after the refusal")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("SGD", "Nesterov")],
                         ids=lambda row: row.name)  # fmt: skip
def test_what_does_not_count_steps_is_captured_as_it_is(row):
    tensors = mixed_tensors()
    for case in (case for case in CASES if case.row is row):
        gpu, cpu = twins(case, tensors)
        first, *others = gradient_steps(tensors, 5)
        step_all(first, gpu, cpu)
        replay(capture(gpu), cpu, others, gpu)
        assert_same(gpu, cpu, str(case))


def test_parameters_without_gradients_are_not_in_the_graph():
    tensors = [torch.randn(10) for _ in range(3)]
    gpu, cpu = twins(ADAM, tensors, capturable=True)
    steps = gradient_steps(tensors, 5)
    for grads in steps[:2]:
        step_all(grads, gpu, cpu)
    for optimizer in (gpu, cpu):
        params_of(optimizer)[1].grad = None
    graph = capture(gpu)
    for _ in range(3):
        graph.replay()
        cpu.step()
    assert_same(gpu, cpu)
