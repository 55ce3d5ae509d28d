#include "footprint.h"

#include <algorithm>

#include "core/rule_info.h"
#include "cuda/square_plan.h"

namespace fusedopt::stand_in {
namespace {

const RuleInfo& info_of(unsigned rule) {
  static const auto infos = [] {
    unsigned index = 0;
    return AllRules::map([&]<class Rule>() { return rule_info<Rule>(index++); });
  }();
  return infos[rule];
}

// How many options a rule reads. Those in the device's memory are left alone.
template <class Rule>
uint32_t count_options(const OptionValue* options) {
  uint32_t count = 0;
  const auto load = [&](uint32_t n) {
    count = std::max(count, n + 1);
    return OptionValue{.value = options[n].value};
  };
  ReplayedOptions replayed(load);
  (void)Rule::read(replayed);
  return count;
}

struct CountOptions {
  template <class Rule>
  auto operator()() const {
    return &count_options<Rule>;
  }
};

Elements one_number(const char* name, const void* at, NumberType type, bool is_written) {
  const auto size = static_cast<unsigned>(size_of(type));
  return {name, static_cast<const std::byte*>(at), size, {{1, 1}}, true, is_written};
}

// The numbers of a decision, which a launch writes or reads.
Elements elements_of(const Decision* decision, bool is_written) {
  const auto* const at = reinterpret_cast<const std::byte*>(decision);
  constexpr int64_t count = sizeof(Decision) / sizeof(double);
  return {"the decision", at, sizeof(double), {{count, 1}}, !is_written, is_written};
}

Elements elements_of(const UpdateList& list, const Update& update, size_t k) {
  const Operand& operand = list.operands(update)[k];
  Elements elements{info_of(list.rule()).operand_names[operand.role].c_str(),
                    static_cast<const std::byte*>(operand.data),
                    static_cast<unsigned>(size_of(operand.format)),
                    {},
                    operand.is_read(),
                    operand.is_written()};
  const Walk walk = list.walk(update);
  for (size_t d = 0; d < update.dim_count; ++d) {
    elements.dims.emplace_back(walk.size(d), walk.stride(d, k));
  }
  if (update.dim_count == 0) elements.dims = {{update.numel, 1}};
  return elements;
}

Elements scales_of(const UpdateList& list, const Update& update, size_t k) {
  const Operand& operand = list.operands(update)[k];
  const RuleInfo& info = info_of(list.rule());
  const int role = info.role_of_scales(static_cast<unsigned>(operand.role - kFirstState));
  const int64_t count = fusedopt::scales_of(update.numel);
  return {info.operand_names[static_cast<size_t>(role)].c_str(),
          reinterpret_cast<const std::byte*>(operand.scales),
          sizeof(float),
          {{count, 1}},
          true,
          true};
}

void add_update(const UpdateList& list, const Update& update, Footprint& footprint) {
  std::vector<Elements>& to = footprint.elements;
  for (size_t k = 0; k < update.operand_count && update.numel > 0; ++k) {
    to.push_back(elements_of(list, update, k));
    if (is_scaled(list.operands(update)[k].format)) to.push_back(scales_of(list, update, k));
  }
  if (!update.derives) return;
  if (update.numel > 0) footprint.derives_in.insert(update.in_double ? "double" : "float");
  if (update.step != nullptr) {
    to.push_back(one_number("a step count", update.step, update.step_type, true));
  }
  if (update.averaged != nullptr) {
    to.push_back(one_number("a count of averages", update.averaged, update.averaged_type, true));
  }
  for (const OptionValue& option : options_of(list, update)) {
    if (option.source == nullptr) continue;
    to.push_back(one_number("an option", option.source, option.type, false));
  }
}

}  // namespace

std::span<const OptionValue> options_of(const UpdateList& list, const Update& update) {
  static const auto count = AllRules::map(CountOptions{});
  const auto* const options = static_cast<const OptionValue*>(list.scalars(update));
  return {options, count[list.rule()](options)};
}

Footprint footprint_of(const SquareList& list, const Prologue& prologue, size_t sums) {
  Footprint footprint;
  footprint.sums = sums;
  footprint.decides = prologue.decision != nullptr;
  for (const Squared& tensor : list.tensors()) {
    if (tensor.numel == 0) continue;
    Elements elements{"grad",
                      static_cast<const std::byte*>(tensor.data),
                      static_cast<unsigned>(size_of(tensor.format)),
                      {},
                      true,
                      false};
    const Walk walk = list.walk(tensor);
    for (size_t d = 0; d < tensor.dim_count; ++d) {
      elements.dims.emplace_back(walk.size(d), walk.stride(d, 0));
    }
    if (tensor.dim_count == 0) elements.dims = {{tensor.numel, 1}};
    footprint.elements.push_back(std::move(elements));
  }
  if (prologue.grad_scale != nullptr) {
    footprint.elements.push_back(
        one_number("grad_scale", prologue.grad_scale, NumberType::kFloat32, false));
  }
  if (prologue.decision != nullptr) {
    footprint.elements.push_back(elements_of(prologue.decision, true));
    if (prologue.found_inf != nullptr) {
      footprint.elements.push_back(
          one_number("found_inf", prologue.found_inf, NumberType::kFloat32, false));
    }
  }
  footprint.table_size =
      list.tensors().size() * sizeof(cuda::SquareEntry) + list.all_walks().size_bytes();
  return footprint;
}

Footprint footprint_of(const UpdateList& list, const Round& round) {
  Footprint footprint;
  for (const Update& update : list.updates_of(round)) add_update(list, update, footprint);
  const auto add_number = [&](const char* name, const float* number) {
    if (number == nullptr) return;
    footprint.elements.push_back(one_number(name, number, NumberType::kFloat32, false));
  };
  add_number("grad_scale", list.prologue().grad_scale);
  add_number("found_inf", list.prologue().found_inf);
  footprint.found_inf = list.prologue().found_inf;
  if (const Decision* const decision = list.prologue().decision; decision != nullptr) {
    footprint.elements.push_back(elements_of(decision, false));
    footprint.is_skipped = &decision->is_skipped;
  }
  const auto operands = static_cast<unsigned>(kFirstState + info_of(list.rule()).states.size());
  footprint.table_size =
      round.count * cuda::entry_size(operands, cuda::needs_any_formats(list, round)) +
      list.all_scalars().size_bytes() + list.all_walks().size_bytes();
  return footprint;
}

bool is_launched(const UpdateList& list, const Round& round) {
  const auto updates = list.updates_of(round);
  return std::any_of(updates.begin(), updates.end(),
                     [](const Update& update) { return update.numel > 0 || update.counts(); });
}

}  // namespace fusedopt::stand_in
