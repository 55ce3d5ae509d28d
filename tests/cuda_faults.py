"""The deliberate faults of the CUDA engine, for ``faults.py``."""

from __future__ import annotations

from mutant import rule

OF_CUDA = [
    *rule(
        "csrc/cuda/engine.cpp",
        (
            "not the caller's stream",
            "arguments, 0, stream_of(execution)",
            "arguments, 0, nullptr",
        ),
        ("not the parameters' device", "if (before_ == device) return;", "return;"),
        ("the device is left selected", "if (is_changed_) ignore(cudaSetDevice(before_));", ""),
        (
            "a graph without its memory",
            "if (memory != nullptr) give_to_graph(std::move(memory), stream);",
            "memory = nullptr;",
        ),
        (
            "a table of the step before",
            "std::copy_n(sections.begin(), capacity, launch.memory->host);",
            "",
        ),
        (
            "tensors of the measurement before",
            "std::copy_n(plan.sections().begin(), size, held.host);",
            "",
        ),
        (
            "sums of the measurement before",
            "cudaMemsetAsync(on_device, 0,",
            "cudaMemsetAsync(on_device, 1,",
        ),
        (
            "sums read before they are there",
            'check(cudaStreamSynchronize(stream), "waiting',
            'check(cudaSuccess, "waiting',
        ),
        (
            "a graph that waits",
            "if (execution.is_captured) {\n      throw",
            "if (false) {\n      throw",
        ),
    ),
    *rule(
        "csrc/cuda/squares.h",
        (
            "strides ignored by a measurement",
            "if (entry_.dim_count == 0) return index;",
            "return index;",
        ),
        ("scaled gradients measured", "if (grad_scale == nullptr) {", "if (true) {"),
        (
            "lanes added in another order",
            "shared.lanes[thread] += shared.lanes[half + thread];",
            "shared.lanes[thread] += shared.lanes[2 * half - 1 - thread];",
        ),
        (
            "overflow taken for infinity",
            "if (sum == HUGE_VAL && shared.is_finite[0]) sum = kOverflow;",
            "",
        ),
        (
            "every block decides",
            "arrive(header.arrivals) + 1 == header.chunk_count",
            "arrive(header.arrivals) + 1 > 0",
        ),
        ("sums left for the next measurement", "      numbers[n] = 0;\n", ""),
        (
            "what a scaler has found ignored",
            "header.found_inf != nullptr && *header.found_inf != 0;",
            "false;",
        ),
        (
            "a row too few",
            "left > 0 ? (left - 1) / kSquareLanes + 1 : 0",
            "left > 0 ? left / kSquareLanes : 0",
        ),
    ),
    *rule(
        "csrc/cuda/square_plan.cpp",
        (
            "nobody decides on nothing",
            "square_blocks_of(tensor.numel), 1)",
            "square_blocks_of(tensor.numel), 0)",
        ),
        ("the walk of another tensor", "tensor.walk * sizeof(int64_t)", "0"),
    ),
    *rule(
        "csrc/cuda/table.h",
        ("neighbour's tensor", "first = begin <= chunk ?", "first = begin < chunk ?"),
    ),
    *rule(
        "csrc/cuda/launch_memory.cpp",
        ("a held table taken", "!memory->is_held.load(std::memory_order_acquire) &&", ""),
        ("a table in flight taken", "          is_finished(*memory)) {", "          true) {"),
        (
            "nobody knows when a table is done",
            "const cudaError_t error = cudaEventRecord(memory_->finished, stream_);",
            "const cudaError_t error = cudaSuccess;",
        ),
        (
            "a table that is never known to be done used again",
            "  if (error != cudaSuccess) (void)memory_.release();\n",
            "",
        ),
        (
            "a table that may still be copied used again",
            "    (void)memory.release();\n    throw;",
            "    throw;",
        ),
        (
            "counters not cleared",
            "cudaMemsetAsync(device_, 0, size,",
            "cudaMemsetAsync(device_, 1, size,",
        ),
        ("a graph's table copied too late", 'stream.wait("waiting for a launch\'s table");', ""),
        (
            "capture not relaxed",
            "mode_ = cudaStreamCaptureModeRelaxed;",
            "mode_ = cudaStreamCaptureModeGlobal;",
        ),
        (
            "capture left relaxed",
            "~RelaxedCapture() { ignore(exchange()); }",
            "~RelaxedCapture() {}",
        ),
        ("memory lost with a failure", "if (device_ != nullptr) ignore(cudaFree(device_));", ""),
        ("an error left for others", "  ignore(status);\n", ""),
    ),
    *rule(
        "csrc/cuda/launch_plan.cpp",
        ("last chunk skipped", "(beyond_first + chunk - 1) / chunk", "beyond_first / chunk"),
        ("empty tensor not counted", "entry.numel > 0 || counts", "entry.numel > 0"),
        (
            "a block too few counts",
            "header_.counting_blocks += chunks;",
            "header_.counting_blocks += 1;",
        ),
    ),
    *rule(
        "csrc/cuda/block.h",
        ("tail skipped", "packs_begin + (end - packs_end);", "packs_begin;"),
        (
            "head skipped",
            "s < packs_begin ? s : packs_end + (s - packs_begin)",
            "packs_end + (s - packs_begin)",
        ),
        ("a pack beyond the end", "i + all_threads < packs_end;", "i + all_threads <= packs_end;"),
        (
            "strides ignored by a block",
            "if (kind_.dim_count > 0) return update_strided",
            "if (false) return update_strided",
        ),
        (
            "every block counts",
            "(table_.header.arrivals) + 1 == table_.header.counting_blocks",
            "(table_.header.arrivals) + 1 > 0",
        ),
        ("skip at 1 only", "*header.found_inf != 0", "*header.found_inf == 1"),
        ("what is not finite stepped by a block", "header.decision->is_skipped != 0", "false"),
        ("clipping forgotten by a block", "if (decision != nullptr) clip(", "if (false) clip("),
        ("quotient not stored by a block", "k != kGrad || is_scaled_;", "k != kGrad;"),
        ("penalty ignored by a block", "(kind_.variant & kL2Penalty) != 0", "false"),
        (
            "double in float's groups",
            "if (kind_.in_double) return update_groups<double>",
            "if (false) return update_groups<double>",
        ),
        ("a warp's groups left out", "first += warps * kGroup", "first += 2 * warps * kGroup"),
        ("states of a block not set", "if constexpr (is_used) set(operand, number);", ""),
        (
            "the old step count",
            "load_count(steps, kind_.step_type) + 1;\n    const uint32_t",
            "load_count(steps, kind_.step_type);\n    const uint32_t",
        ),
    ),
    *rule(
        "csrc/cuda/groups.h",
        (
            "what is behind the end counts for the scale",
            "place_of(lane, e) < memory_.size() && ",
            "",
        ),
        (
            "quotient not stored by a group",
            "role != kGrad || grad_scale_ != nullptr",
            "role != kGrad",
        ),
        ("no remainder", "if (format == Format::kMasterBFloat16) encode_remainders<role>();", ""),
        ("penalty ignored by a group", "(memory_.kind().variant & kL2Penalty) != 0", "false"),
    ),
    *rule(
        "csrc/cuda/group_memory.h",
        ("strides ignored by a group", "if (kind().dim_count == 0) return index;", "return index;"),
        (
            "the host's count draws",
            "if (context_.entry.step != nullptr) draws.step",
            "if (false) draws.step",
        ),
        (
            "parts draw as wholes",
            "if (offset != 0) return draw_across",
            "if (false) return draw_across",
        ),
    ),
]
