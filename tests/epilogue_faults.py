"""The deliberate faults of ``mutants.py`` in what follows a step."""

from __future__ import annotations

from mutant import OF_EPILOGUE, rule

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
            "if (operands_[k].is_read() && epilogue_->average_weight != 1) {\n",
            "if (true) {\n",
        ),
        ("nothing is shrunk", "epilogue_->l1_threshold != 0", "false"),
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
        ("mean not counted", "memory_.plan.count_step(list, place, averaged + 1);", ""),
        ("stale count of a new mean", "is_first ? 0 : read_count", "false ? 0 : read_count"),
        ("epilogue on any engine", "if (!list.engine->has_epilogue()) {", "if (false) {"),
        (
            "average of any dtype",
            "if (format == Format::kFloat32 || format == Format::kFloat64) return;",
            "return;",
        ),
        found_by=OF_EPILOGUE,
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
            "storage.asked_for_in(group) or epilogue.asked_for_in(group)",
            "storage.asked_for_in(group)",
        ),
        (
            "options of a checkpoint only",
            "storage.DEFAULTS | epilogue.DEFAULTS",
            "storage.DEFAULTS",
        ),
        found_by=OF_EPILOGUE,
    ),
]
