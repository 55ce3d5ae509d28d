"""The deliberate faults of ``mutants.py``."""

from __future__ import annotations

from pathlib import Path

from cuda_faults import OF_CUDA
from epilogue_faults import MUTANTS as OF_EPILOGUE
from mutant import OF_RANKS, ROOT, Mutant, rule


def of_rules(*faults: tuple[str, str, str]) -> list[Mutant]:
    """Faults of every header of a rule, and of every class, that says ``old``."""
    paths = [*ROOT.glob("csrc/rules/*.h"), *ROOT.glob("fusedopt/optimizers/*.py")]
    mutants = []
    for name, old, new in faults:
        having = [path for path in paths if old in path.read_text()]
        if not having:
            raise ValueError(f"{name}: no rule says {old!r}")
        files = [str(path.relative_to(ROOT)) for path in having]
        mutants += [Mutant(f"{name} ({Path(file).name})", file, old, new) for file in files]
    return mutants


MUTANTS = [
    *rule(
        "csrc/rules/shared.h",
        ("maximize ignored", "T(hyper.maximize ? -1.0 : 1.0)", "T(1.0)"),
        ("no decay", "grad = grad + scalars.weight_decay * param;", ""),
        ("decay of 0 added", "weight_decay != 0 && !decoupled", "!decoupled"),
        ("decoupled decay without lr", "1.0 - hyper.lr * hyper.weight_decay", "1.0 - hyper.lr"),
        ("penalty ignored", "if (has_l2_penalty) grad", "if (false) grad"),
    ),
    *rule(
        "csrc/rules/element.h",
        ("scale multiplied", "return grad / scale;", "return grad * (T(1) / scale);"),
        ("step added", "param = param - Rule", "param = param + Rule"),
    ),
    *rule(
        "csrc/rules/math.h",
        ("maximum drops NaN", "(a > b || a != a) ? a : b", "a > b ? a : b"),
        ("lerp from one end", "weight < T(0.5) ?", "weight < T(2) ?"),
        ("power off by one", "for (; exponent > 0;", "for (; exponent > 1;"),
    ),
    *of_rules(
        (
            "betas swapped",
            'hyper.beta1 = options.below_one("betas", 0, 2);\n'
            '    hyper.beta2 = options.below_one("betas", 1, 2);',
            'hyper.beta2 = options.below_one("betas", 0, 2);\n'
            '    hyper.beta1 = options.below_one("betas", 1, 2);',
        ),
        (
            "epsilon inside the root",
            "square_root(second_moment) * s.rsqrt_bias_correction2 + s.eps",
            "square_root(second_moment + s.eps) * s.rsqrt_bias_correction2",
        ),
        ("no first bias correction", "T(hyper.lr / bias_correction1)", "T(hyper.lr)"),
        ("no second bias correction", "T(1.0 / square_root(bias_correction2))", "T(1.0)"),
        ("amsgrad without maximum", "maximum(max_exp_avg_sq, exp_avg_sq)", "exp_avg_sq"),
        (
            "amsgrad's maximum unused",
            "second_moment = max_exp_avg_sq;",
            "second_moment = exp_avg_sq;",
        ),
        ("dampening ignored", "T(1.0 - hyper.dampening)", "T(1.0)"),
        ("first buffer dampened", "is_fresh ? grad :", "false ? grad :"),
        (
            "nesterov ignored",
            "variant == kNesterov || variant == kFreshNesterov",
            "false",
        ),
        ("first buffer times infinity", "hyper.dampening != 0 || may_be_infinite",
         "hyper.dampening != 0"),
        ("nesterov's first step", "copies ? kFreshNesterov : kNesterov", "kNesterov"),
        ("learning rate outside", "velocity - s.lr * grad", "velocity - grad"),
        ("no lookahead", "return -(s.momentum * velocity - impulse);",
         "return -velocity;"),
        ("decay one step ahead", "static_cast<double>(step - 1)", "static_cast<double>(step)"),
        ("not centered", "variance = square_avg - grad_avg * grad_avg;", ""),
        ("momentum ignored", "(hyper.momentum > 0 ? kMomentum : 0u)", "0u"),
        ("epsilon in one root only", "square_root(square_avg + s.eps)", "square_root(square_avg)"),
    ),
    *rule(
        "csrc/core/codec.h",
        ("bfloat16 truncated", "bits + 0x7fff + (bits >> 16 & 1)", "bits"),
        ("bfloat16 ties away", "bits + 0x7fff + (bits >> 16 & 1)", "bits + 0x8000"),
        ("bfloat16 without NaN", "number != number ? uint32_t{kNarrowNan} << 16 : rounded",
         "rounded"),
        ("float16 without NaN", "is_nan = magnitude > 0x7f800000;", "is_nan = false;"),
        ("another NaN of 16 bits", "kNarrowNan = 0x7fff;", "kNarrowNan = 0x7e00;"),
        ("float16 ties away", "0xfff + (magnitude >> 13 & 1)", "0x1000"),
        ("float16 without subnormals", "magnitude < 0x38800000 ? subnormal", "false ? subnormal"),
        ("a double rounded twice", "return std::bit_cast<float>(odd);", "return nearest;"),
        ("random bits ignored", "(number) + random_bits)", "(number))"),
        ("remainder's sign ignored", "- (remainder >> 15 << 16)", ""),
    ),
    *rule(
        "csrc/core/codes.h",
        ("nothing is zero", "relative > kLowest ? m", "relative > -1.0f ? m"),
        ("zero without a sign", "number > 0.0f ? m - 1", "relative > kLowest ? m - 1"),
        ("no code for 1", "decade + 1 < kDecades ? first_value(decade + 1) : 1.0f",
         "first_value(decade + 1 < kDecades ? decade + 1 : decade)"),
        ("a code for -1", "-Operations::min(distance, 127)", "-distance"),
        ("infinity as a scale", "bits < kInfinity ? bits : 0", "bits"),
        ("a reciprocal out of range", "scale < 0x1p-126f", "scale < 0.0f"),
    ),
    *rule(
        "csrc/core/random.h",
        ("one draw for all steps", "words[3] = draws.step;", "words[3] = 0;"),
        ("one draw for all operands", "| operand << 24", ""),
    ),
    *rule(
        "csrc/core/memory_range.cpp",
        ("shared memory not seen", "ranges_[a].end > ranges_[b].begin", "false"),
        ("neighbours share memory", "ranges_[a].end > ranges_[b].begin",
         "ranges_[a].end >= ranges_[b].begin"),
        ("gradient in a parameter not seen",
         "return next != by_address_.end() && !begins_behind(*next);", "return false;"),
        ("a range that has moved", "(hint == 0 || ends_before(by_address_[hint - 1]))", "true"),
        ("written before it is read", "free.to_write = std::max(free.to_write, round + 1);",
         "if (access->writes) free.to_write = round + 1;"),
        ("read before it is written", "if (access->writes) free.to_read = free.to_write;", ""),
    ),
    *rule(
        "csrc/core/memory_range.h",
        ("last step's ranges", "      ranges_[count_] = range;\n      is_sorted_ = false;",
         "      ranges_[count_] = range;"),
    ),
    *rule(
        "csrc/core/update_list.cpp",
        ("shared gradient divided twice", "for (const Touch* earlier : {last, last_dense}) {",
         "for (const Touch* earlier : {last, last}) {"),
        ("gaps taken for elements", "(a.range.begin == b.range.begin || (is_dense(a) &&",
         "(true || (is_dense(a) &&"),
        ("states of several formats", "operand.format != tensors[kFirstState].format",
         "false"),
        ("shared scales not seen", "if (operands[k].scales != nullptr) written_",
         "if (false) written_"),
        ("all in the first round",
         "round_of_[u] = plan.earliest(accesses.data(), accesses.size());", "round_of_[u] = 0;"),
    ),
    *rule(
        "csrc/core/layout.cpp",
        ("overlapping states accepted", "k != kGrad && may_overlap", "k == kParam && may_overlap"),
        ("a double computed in float", "return tensor.format == Format::kFloat64;",
         "return false;"),
        ("strides not compared", "return same_strides(param, tensor);", "return true;"),
        ("codes in the parameter's order", "codes == tensors.end() ? tensors[kParam] : *codes",
         "tensors[kParam]"),
    ),
    *rule(
        "csrc/core/reduction.h",
        ("lanes added in pairs", "lanes[lane] += lanes[half + lane]",
         "lanes[lane] = lanes[2 * lane] + lanes[2 * lane + 1]"),
        ("a limb lost", "(lower >> kLimbBits) + (upper & kMask)", "(upper & kMask)"),
        ("ties not to even", "(is_more || (upper & 1) != 0)", "true"),
        ("what is below a tie ignored", "(is_more || (upper & 1) != 0)", "(upper & 1) != 0"),
        ("a NaN taken for an infinity", "mantissa != 0 ? kNans : number > 0", "kInfinities"),
        ("gradients made larger", "return factor > 1 ? 1 : factor;", "return factor;"),
    ),
    *rule(
        "csrc/core/update_list.cpp",
        ("doubles clipped as floats", "update.in_double ? clip_scalars<double>",
         "false ? clip_scalars<double>"),
    ),
    *rule(
        "csrc/cpu/measure.cpp",
        ("the norm of scaled gradients",
         "isa_.unscale[tensor.in_double](numbers, *divisor_, n);", ""),
        ("a block left out at a cut", "int64_t b = square_blocks_of(before);",
         "int64_t b = square_blocks_of(before) + (before > 0);"),
        ("strides of gradients ignored", "if (tensor.dim_count > 0) {", "if (false) {"),
        ("a floor that reads half", "std::min(begin + kSquareBlock, tensor.numel)",
         "std::min(begin + kSquareBlock / 2, tensor.numel)"),
    ),
    *rule(
        "csrc/bindings/step.cpp",
        ("clipping forgotten", "if (decision.factor != 1) memory_.plan.clip(decision.factor);", ""),
        ("old addresses after a collective",
         "if ((sums.size() > 1 || has_copied) && !is_skipped_) lay_out();", ""),
        ("a host that counts what a device may skip",
         " ||\n          clipping_.options().skips_nonfinite);", ");"),
    ),
    *rule(
        "csrc/core/decision.h",
        ("what is not finite stepped",
         "is_skipped || (options.skips_nonfinite && !total.is_finite())", "is_skipped"),
        ("a scaler's skip forgotten", "is_skipped || (options", "(options"),
    ),
    *rule(
        "fusedopt/optimizers/clipping.py",
        ("ranks left out", "torch.distributed.all_reduce(parts, group=group)", "pass"),
        ("replicas added up", "if not placement.is_replicate():", "if True:"),
        found_by=OF_RANKS,
    ),
    *rule(
        "csrc/cpu/engine.cpp",
        ("last element skipped", "&draws, end - begin)", "&draws, end - begin - 1)"),
        ("random bits from the beginning", "list.draws(update)->from(begin)",
         "*list.draws(update)"),
        ("new states taken for old", "!update.is_plain || list", "update.dim_count > 0 || list"),
        ("last part of a thread skipped", "u == end.update ? end.element", "u == end.update ? 0"),
        ("scale ignored", "!update.is_plain || list.prologue().grad_scale != nullptr",
         "!update.is_plain"),
    ),
    *rule(
        "csrc/cpu/pipeline.cpp",
        ("every other block skipped",
         "i += kBlock) {\n    for (size_t k", "i += 2 * kBlock) {\n    for (size_t k"),
        ("strides ignored", "const int64_t stride = elements.inner_stride(k);",
         "const int64_t stride = 1;"),
        ("quotient not stored", "!operands_[k].is_written() ||", "k == kGrad ||"),
        ("new states not begun",
         "fill(in_double_, numbers_[k], initial_number(operands_[k]), n);", ";"),
        ("gradients written", "!operands_[k].is_written() || numbers", "numbers"),
        ("one scale for all blocks", "operands_[k].scales + first / kScaledBlock",
         "operands_[k].scales"),
        ("one draw for all blocks", "draws = draws_->from(first)", "draws = *draws_"),
        ("one draw for all blocks of a pass", "isa_.draw(draws_->from(first)", "isa_.draw(*draws_"),
        ("new states taken as stored", " || !state.is_read()", ""),
        ("states of several formats taken", "state.format != formats.states || ", ""),
        ("new remainder taken as stored", " && !operands.back().is_read()", " && false"),
        ("scaled gradients taken as stored",
         "if (list.prologue().grad_scale != nullptr) formats.grad = number;", ""),
        ("remainder that holds nothing read", "!operands_.back().is_read()", "false"),
    ),
    *rule(
        "csrc/cpu/kernels.cpp",
        ("elements of a tail skipped", "if (whole == n) return;", "return;"),
        ("random bits of a tail", "Draws{} : draws->from(first)", "Draws{} : *draws"),
        ("remainder of a tail left", "operand_count + has_remainder; ++k", "operand_count; ++k"),
        ("one draw for all groups", "Lanes::draw(draws->from(first)", "Lanes::draw(*draws"),
        ("random bits of another state", "role_of(k), n", "k, n"),
        ("gradient of a tail written", "if (k != kGrad) std::memcpy",
         "if (k != kParam) std::memcpy"),
        ("states out of place", "std::popcount(kUsed & ((1u << state) - 1))", "state"),
    ),
    *rule(
        "csrc/cpu/passes.h",
        ("one group for all", "group = draws.first / kDrawGroup", "group = 0"),
        ("no second group", "if (offset + n > kDrawGroup) draw_group", "if (false) draw_group"),
    ),
    *rule(
        "csrc/cpu/convert.h",
        ("float16 rounded down", "_mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT",
         "_mm512_cvtps_ph(wide, _MM_FROUND_TO_ZERO"),
        ("pairs swapped", "to[l] = std::bit_cast<float>(first);",
         "to[l] = std::bit_cast<float>(second);"),
        ("remainders of pairs swapped", "join(first, remainders & ~kUpperHalf)",
         "join(first, remainders >> 16)"),
        ("random bits of pairs swapped", "(first, random_bits & ~kUpperHalf)",
         "(first, random_bits >> 16)"),
        ("any NaN of float16", "_mm256_mask_mov_epi16(narrow, is_nan,",
         "_mm256_mask_mov_epi16(narrow, 0,"),
    ),
    *rule(
        "csrc/cpu/threads.cpp",
        ("forks not seen", "[] { is_forked = true; }", "[] {}"),
        ("forks ahead of the import not seen", "is_forked = was_forked_before();",
         "is_forked = false;"),
        ("parts without a thread left out",
         "  for (; part < parts; ++part) run_part(part, work);\n  for (std::thread",
         "  for (std::thread"),
        ("forked children on one thread", "} else if (is_forked) {\n    run_on_new_threads(parts",
         "} else if (is_forked) {\n    for (int part = 0; part < parts; ++part) run_part(part"),
    ),
    *rule(
        "csrc/bindings/amp_tensors.cpp",
        ("number left elsewhere",
         "!place || place->type != NumberType::kFloat32 || place->device != device", "!place"),
    ),
    *rule(
        "csrc/bindings/step.cpp",
        ("skip ignored", "  if (is_skipped_) return;\n  const", "  const"),
        ("states published early", "  const std::exception_ptr failure = [&] {",
         "  for (const ParamPlan& plan : memory_.params) {\n"
         "    if (plan.has_new_states()) state_.publish(plan);\n"
         "  }\n"
         "  const std::exception_ptr failure = [&] {"),
        ("states of a failed step", "!plan.has_new_states() || !plan.list->is_done",
         "!plan.has_new_states()"),
        ("versions of a failed step", "if (is_done(params[p])) count", "count"),
        ("one count for two", "  if (!shared) return;\n", "  return;\n"),
    ),
    *rule(
        "csrc/core/plan.cpp",
        ("step counted twice", "place.type, count.value)", "place.type, count.value + 1)"),
        ("a failed step counts", "if (count.list->is_done) store_count", "store_count"),
        ("scalars of another parameter", "latest.step != step || latest.list", "latest.list"),
        ("options of another device", "latest_options_.list != &list",
         "latest_options_.list == nullptr"),
        ("the CPU before a launch that may fail", "    run(true);\n    run(false);",
         "    run(false);\n    run(true);"),
    ),
    *rule(
        "csrc/bindings/excursion.cpp",
        ("an excursion entered twice", "active = current(optimizer)) {",
         "active = current(optimizer); false) {"),
        ("an excursion over another's", "  refuse_if_active(optimizer_);\n  saved_", "  saved_"),
        ("a parameter of another dtype", "is(value.attr(", "is(param.attr("),
        ("a move that fails is not taken back", "    try {\n      leave();", "    try {"),
        ("values not kept until they are back", "        left.append(entry);\n", ""),
        ("another excursion left", " && saved.is(active.cast<py::tuple>()[1])", ""),
        ("interruptions of the way back lost", "  interruption.raise();\n", ""),
        ("written outside of inference mode", '.attr("_InferenceMode")(true)',
         '.attr("_InferenceMode")(false)'),
    ),
    *rule(
        "csrc/bindings/torch_library.cpp",
        ("any device is the CPU", "if (type == cpu_)", "if (true)"),
        ("release not looked at", "if (!is_tried(torch)) return;", ""),
        ("failed trial not forgotten", "catch (...) {", "catch (const Release&) {"),
        ("negation not seen", "return is_neg_(handle_of(tensor));", "return false;"),
        ("samples not compared", "describe(sample.ptr(), found) && is_same(expected, found)",
         "(describe(sample.ptr(), found) || is_same(expected, found))"),
    ),
    *OF_CUDA,
    *OF_EPILOGUE,
    *rule(
        "csrc/bindings/optimizer_state.cpp",
        ("a new state of any kind", "torch_.require_tensor(tensor, (\"new",
         "if (false) torch_.require_tensor(tensor, (\"new"),
    ),
    *rule(
        "csrc/bindings/torch_tensors.cpp",
        ("versions not counted", "if (library_.increment_version(tensor)) continue;", "continue;"),
    ),
    *rule(
        "csrc/bindings/group_walk.cpp",
        ("versions of states not counted", "if (operand.is_written()) memory_.touched",
         "if (operand.role == kParam) memory_.touched"),
    ),
    *of_rules(
        ("first buffer of +0", "return -0.0", "return 0.0"),
        ("sum begins with 0", 'return float(group["initial_accumulator_value"])', "return 0.0"),
    ),
    *rule(
        "fusedopt/optimizers/base.py",
        ("a step inside a step is seen, too", ") and stepping.optimizer is not self", ")"),
        ("found infinity left behind", """                if "found_inf" in attributes:
                    del attributes["found_inf"]
""", ""),
    ),
    *rule(
        "fusedopt/modes.py",
        ("derivatives do not see it", "interpreter.key() in _DERIVATIVES", "False"),
        ("traces do not see it", 'if getattr(mode, "_mode_key", None) is not None', "if False"),
        ("tangents are lost", "if forward_ad._current_level >= 0:", "if False:"),
        ("modes do not see it", "if torch._C._len_torch_dispatch_stack() and params", "if False"),
        ("a step that is over is done again", "    _pending.step = outer", "    pass"),
    ),
    *rule(
        "fusedopt/hooks.py",
        ("inner steps are seen, too", "if stepping.optimizer is self:", "if False:"),
        ("a step that raises goes on for ever", "  stepping.optimizer = outer", "  pass"),
    ),
    *of_rules(
        ("a copy at the iterate", "def __getstate__(self)", "def getstate(self)"),
        ("a step at the iterate", 'if "_excursion" in attributes:', "if False:"),
        ("entry not checked first",
         '        _native.check_step("sgd", groups, {}, self._create_state)\n', ""),
    ),
]  # fmt: skip
