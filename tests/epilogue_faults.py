"""The deliberate faults of ``mutants.py`` in what follows a step."""

from __future__ import annotations

from mutant import OF_EPILOGUE, OF_EPILOGUE_ON_CUDA, rule

MUTANTS = [
    *rule(
        "csrc/rules/element.h",
        (
            "shrunk past zero",
            "maximum(absolute(param) - threshold, T(0))",
            "absolute(param) - threshold",
        ),
        (
            "shrunk without its sign",
            "with_sign(maximum(absolute(param) - threshold, T(0)), param)",
            "maximum(absolute(param) - threshold, T(0))",
        ),
        (
            "average from the other end",
            "lerp(average, param, weight)",
            "lerp(param, average, weight)",
        ),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "csrc/cpu/pipeline.cpp",
        (
            "average of what was not rounded",
            "if (format != arithmetic_format(in_double_)) {\n      isa_.decode",
            "if (false) {\n      isa_.decode",
        ),
        (
            "average that begins with zero",
            "if (epilogue_->average_weight != 1) {\n",
            "if (true) {\n",
        ),
        ("nothing is shrunk", "epilogue_->l1_threshold != 0", "false"),
        ("parameters taken as stored", "if (epilogue != nullptr) formats.param = number;", ""),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "csrc/bindings/epilogue_options.cpp",
        ("negative penalty", "options.l1 >= 0 &&", ""),
        ("decay above one", "&& options.ema_decay <= 1", ""),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "csrc/core/epilogue.h",
        (
            "mean that counts from zero",
            "static_cast<double>(averaged + 1)",
            "static_cast<double>(averaged)",
        ),
        ("penalty without lr", "return lr * l1;", "return l1;"),
        ("mean with a decay", "averages && ema_decay == 1", "false"),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "csrc/bindings/step.cpp",
        ("mean not counted", "averaged = count_on_host(plan, list, count);", ""),
        (
            "average of any dtype",
            "if (format == Format::kFloat32 || format == Format::kFloat64) return;",
            "return;",
        ),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "csrc/bindings/optimizer_state.cpp",
        ("stale count of a new mean", "if (begins_average) return", "if (false) return"),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "csrc/bindings/step.cpp",
        ("average of a skipped step", "if (plan.begins_average) host_must_know_ = true;", ""),
        ("rate of the host", "update.derives ? 1 : group.hyper->lr()", "group.hyper->lr()"),
        (
            "average that each replay begins",
            "if (plan.has_new_states()) {\n    throw",
            "if (false) {\n    throw",
        ),
        (
            "mean that no replay counts",
            "plan.step != nullptr || plan.averaged != nullptr",
            "plan.step != nullptr",
        ),
        found_by=OF_EPILOGUE_ON_CUDA,
    ),
    *rule(
        "csrc/cuda/groups.h",
        ("nothing is shrunk by a warp", "if (l1_threshold != 0) {", "if (false) {"),
        (
            "average of what a warp did not round",
            "if (memory_.format(kParam) != of_numbers) decode<kParam>();",
            "",
        ),
        ("average of a warp that begins with zero", "weight == 1 ? param : ", ""),
        found_by=OF_EPILOGUE_ON_CUDA,
    ),
    *rule(
        "csrc/cuda/group_memory.h",
        (
            "average left out of a walk",
            "for (unsigned p = 0; p < kExtra.remainder; ++p) {",
            "for (unsigned p = 0; p < operands; ++p) {",
        ),
        found_by=OF_EPILOGUE_ON_CUDA,
    ),
    *rule(
        "csrc/cuda/block.h",
        ("threshold without lr", "= lr * epilogue.l1_threshold;", "= epilogue.l1_threshold;"),
        (
            "mean never counted",
            "if (averaged != nullptr) count_on(averaged, entry.kind.averaged_type);",
            "",
        ),
        (
            "mean without a block that counts",
            "has_counts = has_counts || place(entry_, kExtra.averaged) != 0;",
            "",
        ),
        (
            "weight of the host",
            "if (averaged != nullptr) {\n      epilogue",
            "if (false) {\n      epilogue",
        ),
        found_by=OF_EPILOGUE_ON_CUDA,
    ),
    *rule(
        "csrc/cuda/launch_plan.cpp",
        ("epilogue in a usual kernel", "update.epilogue != Update::kNone || ", ""),
        (
            "mean of an empty tensor not counted",
            "entry.numel > 0 || counts;",
            "entry.numel > 0 || entry.step != nullptr;",
        ),
        found_by=OF_EPILOGUE_ON_CUDA,
    ),
    *rule(
        "fusedopt/optimizers/excursions.py",
        (
            "a step among averages",
            "if excursion is None:\n            return",
            "if True:\n            return",
        ),
        ("averages of another shape", "if average.shape != param.shape:", "if False:"),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "fusedopt/optimizers/epilogue.py",
        (
            "average in 16 bits",
            "torch.float64 if param.dtype == torch.float64 else torch.float32",
            "param.dtype",
        ),
        found_by=OF_EPILOGUE,
    ),
    *rule(
        "fusedopt/optimizers/loading.py",
        (
            "averages cast",
            "if key in kept or epilogue.AVERAGE in states",
            "if key in kept",
        ),
        (
            "options of a checkpoint only",
            "storage.DEFAULTS | epilogue.DEFAULTS",
            "storage.DEFAULTS",
        ),
        found_by=OF_EPILOGUE,
    ),
]
