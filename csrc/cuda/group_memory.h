// Where the elements of a group are: the 256 that a warp updates together, which share a scale and
// the calls of a generator. They come from memory to the registers of the warp's lanes, wherever an
// operand lies, and go back.
#pragma once

#include "core/one_number.h"
#include "core/operand.h"
#include "core/random.h"
#include "cuda/table.h"
#include "cuda/warp.h"

namespace fusedopt::cuda {

static_assert(kGroup == kScaledBlock && kGroup == kDrawGroup && kDrawCalls == kWarpSize);

// Where element e of a lane is in its group.
FUSEDOPT_GROUP_FN constexpr unsigned place_of(unsigned lane, unsigned e) {
  return e / kPack * (kGroup / kPacks) + lane * kPack + e % kPack;
}

template <class Stored>
struct alignas(sizeof(Stored) * kPack < kPackBytes ? sizeof(Stored) * kPack : kPackBytes) Quad {
  Stored elements[kPack];
};

// The elements of one operand that a lane has, or anything as many.
template <class Stored>
struct Elements {
  Stored of[kLaneElements];
};

// What a group needs to know of its launch, its tensor and its block.
template <class TableOf>
struct GroupContext {
  const TableOf& table;
  const Entry& entry;      // copies of what the table has
  const uint64_t* places;  // behind it
  const Epilogue& epilogue;
  std::byte* stage;  // of the warp: room for a group of any format, shared by its lanes
  int64_t step;      // its count, where the device has it
};

// The operands of a rule, in one group of one update.
template <unsigned operands, class TableOf>
class GroupMemory {
 public:
  static constexpr ExtraPlaces kExtra{operands};

  FUSEDOPT_GROUP_FN GroupMemory(const GroupContext<TableOf>& context, unsigned thread,
                                int64_t first)
      : context_(context), warp_(thread), first_(first) {
    const int64_t left = context.entry.numel - first;
    size_ = left < kGroup ? static_cast<unsigned>(left) : kGroup;
  }

  FUSEDOPT_GROUP_FN const Warp& warp() const { return warp_; }
  FUSEDOPT_GROUP_FN const Kind& kind() const { return context_.entry.kind; }
  FUSEDOPT_GROUP_FN const Epilogue& epilogue() const { return context_.epilogue; }
  // Of a role, or of the average by its place; kNoFormat if the update has no such operand.
  FUSEDOPT_GROUP_FN Format format(unsigned place) const {
    return format_of(context_.entry.formats, place);
  }
  // How many elements it has, of kGroup at most.
  FUSEDOPT_GROUP_FN unsigned size() const { return size_; }

  // Where the scale of a role's codes is.
  FUSEDOPT_GROUP_FN float* scale(unsigned role) const {
    auto* const scales = address<float>(kExtra.scales + role - kFirstState);
    return in_global_memory(scales + first_ / kScaledBlock);
  }

  // Whether the operand at a place lies as one run whose packs are aligned, and the group is whole.
  // Other operands go by the stage, whatever their size.
  FUSEDOPT_GROUP_FN bool has_packs(unsigned place, unsigned element_size) const {
    const unsigned quad = element_size * kPack;
    const unsigned alignment = quad < kPackBytes ? quad : kPackBytes;
    return kind().dim_count == 0 && size_ == kGroup && context_.places[place] % alignment == 0;
  }

  // Ahead of the first write to the stage: another lane may still read what is there.
  FUSEDOPT_GROUP_FN void begin_staging() const { warp_.synchronize(); }

  // Brings an operand to the stage, by lanes side by side, with zeros behind the end of the update.
  FUSEDOPT_GROUP_FN void bring(unsigned place, unsigned element_size) const {
    begin_staging();
    for_each_element(kGroup, [&](unsigned i) {
      const int64_t offset = i < size_ ? offset_of(place, i) : 0;
      with_word(element_size, [&]<class Word>() {
        stage<Word>()[i] = i < size_ ? *in_global_memory(address<Word>(place) + offset) : Word{};
      });
    });
    warp_.synchronize();
  }

  // The way back.
  FUSEDOPT_GROUP_FN void take_away(unsigned place, unsigned element_size) const {
    warp_.synchronize();
    for_each_element(size_, [&](unsigned i) {
      const int64_t offset = offset_of(place, i);
      with_word(element_size, [&]<class Word>() {
        *in_global_memory(address<Word>(place) + offset) = stage<Word>()[i];
      });
    });
  }

  // The lanes' elements of the operand at a place, or of what has been brought to the stage.
  template <class Stored>
  FUSEDOPT_GROUP_FN void load(unsigned place, bool is_staged, PerLane<Elements<Stored>>& to) const {
    const auto set = [&](unsigned lane, unsigned e, const Quad<Stored>& quad) {
      for (unsigned i = 0; i < kPack; ++i) to.of(lane).of[e + i] = quad.elements[i];
    };
    warp_.run([&](unsigned lane) {
      for (unsigned e = 0; e < kLaneElements; e += kPack) {
        if (is_staged) {
          set(lane, e, *quad_at(stage<Stored>(), lane, e));
        } else {
          set(lane, e, *in_global_memory(quad_at(address<Stored>(place) + first_, lane, e)));
        }
      }
    });
  }

  // The way back. What goes to the stage has to be taken away from there.
  template <class Stored>
  FUSEDOPT_GROUP_FN void store(unsigned place, bool is_staged,
                               const PerLane<Elements<Stored>>& from) const {
    warp_.run([&](unsigned lane) {
      for (unsigned e = 0; e < kLaneElements; e += kPack) {
        Quad<Stored> quad;
        for (unsigned i = 0; i < kPack; ++i) quad.elements[i] = from.of(lane).of[e + i];
        if (is_staged) {
          *quad_at(stage<Stored>(), lane, e) = quad;
        } else {
          *in_global_memory(quad_at(address<Stored>(place) + first_, lane, e)) = quad;
        }
      }
    });
  }

  // For the numbers of a role.
  FUSEDOPT_GROUP_FN void draw(uint32_t role, PerLane<Elements<uint16_t>>& random_bits) const {
    const auto at = static_cast<uint32_t>(context_.places[kExtra.draws]);
    auto draws = read<Draws>(context_.table, at);
    if (context_.entry.step != nullptr) draws.step = static_cast<uint32_t>(context_.step);
    const int64_t group = (draws.first + first_) / kDrawGroup;
    const auto offset = static_cast<unsigned>((draws.first + first_) % kDrawGroup);
    if (offset != 0) return draw_across(draws, role, group, offset, random_bits);
    warp_.run([&](unsigned lane) {
      const Words words = call(draws, role, group, lane);
      for (unsigned e = 0; e < kLaneElements; ++e) random_bits.of(lane).of[e] = half_of(words, e);
    });
  }

 private:
  template <class Stored>
  FUSEDOPT_GROUP_FN Stored* address(unsigned place) const {
    return reinterpret_cast<Stored*>(context_.places[place]);
  }
  template <class Stored>
  FUSEDOPT_GROUP_FN Stored* stage() const {
    return reinterpret_cast<Stored*>(context_.stage);
  }
  template <class Stored>
  FUSEDOPT_GROUP_FN static Quad<Stored>* quad_at(Stored* group, unsigned lane, unsigned e) {
    return reinterpret_cast<Quad<Stored>*>(group + place_of(lane, e));
  }

  template <class Visit>
  FUSEDOPT_GROUP_FN void for_each_element(unsigned count, Visit visit) const {
    warp_.run([&](unsigned lane) {
#pragma unroll 1
      for (unsigned i = lane; i < count; i += kWarpSize) visit(i);
    });
  }

  // Calls f.template operator()<Word>() with an integer of the size.
  template <class F>
  FUSEDOPT_GROUP_FN static void with_word(unsigned size, F f) {
    switch (size) {
      case 1: return f.template operator()<uint8_t>();
      case 2: return f.template operator()<uint16_t>();
      case 4: return f.template operator()<uint32_t>();
      default: return f.template operator()<uint64_t>();
    }
  }

  // Of element i of the group, in the walk of the update.
  FUSEDOPT_GROUP_FN int64_t offset_of(unsigned place, unsigned i) const {
    int64_t index = first_ + i;
    if (kind().dim_count == 0) return index;
    constexpr auto number = static_cast<uint32_t>(sizeof(int64_t));
    const uint32_t dim_size = number * (1 + operand_count());
    const uint32_t stride = number * (1 + position_of(place));
    uint32_t dim = context_.entry.walk + kind().dim_count * dim_size;
    int64_t offset = 0;
#pragma unroll 1
    for (unsigned d = kind().dim_count; d > 0; --d) {
      dim -= dim_size;
      const auto size_of_dim = read<int64_t>(context_.table, dim);
      offset += index % size_of_dim * read<int64_t>(context_.table, dim + stride);
      index /= size_of_dim;
    }
    return offset;
  }

  // How many operands of the update are ahead of one in its walk. A remainder is the last.
  FUSEDOPT_GROUP_FN unsigned position_of(unsigned place) const {
    unsigned position = 0;
    for (unsigned p = 0; p < kExtra.remainder; ++p) {
      position += p < place && format(p) != kNoFormat;
    }
    return position;
  }
  FUSEDOPT_GROUP_FN unsigned operand_count() const {
    return position_of(kExtra.remainder) + (format(kParam) == Format::kMasterBFloat16);
  }

  struct Words {
    uint32_t of[4];
  };

  FUSEDOPT_GROUP_FN static Words call(const Draws& draws, uint32_t role, int64_t group,
                                      unsigned lane) {
    const DrawCounter counter(draws, role, group);
    uint64_t words[4][1];
    for (unsigned w = 0; w < 4; ++w) words[w][0] = counter.words[w];
    words[0][0] += lane;
    philox(words, draws.seed, MultiplyWord{});
    Words result;
    for (unsigned w = 0; w < 4; ++w) result.of[w] = static_cast<uint32_t>(words[w][0]);
    return result;
  }

  // Element e of a lane has the half of a word.
  FUSEDOPT_GROUP_FN static uint16_t half_of(const Words& words, unsigned e) {
    return static_cast<uint16_t>(words.of[e / 2] >> (16 * (e % 2)));
  }

  // A part of a larger tensor may begin inside a group of calls: its groups lie across two.
  FUSEDOPT_GROUP_FN void draw_across(const Draws& draws, uint32_t role, int64_t group,
                                     unsigned offset,
                                     PerLane<Elements<uint16_t>>& random_bits) const {
    begin_staging();
    warp_.run([&](unsigned lane) {
#pragma unroll 1
      for (unsigned next = 0; next < 2; ++next) {
        const Words words = call(draws, role, group + next, lane);
        for (unsigned e = 0; e < kLaneElements; ++e) {
          stage<uint16_t>()[next * kGroup + place_of(lane, e)] = half_of(words, e);
        }
      }
    });
    warp_.synchronize();
    warp_.run([&](unsigned lane) {
      for (unsigned e = 0; e < kLaneElements; ++e) {
        random_bits.of(lane).of[e] = stage<uint16_t>()[offset + place_of(lane, e)];
      }
    });
    begin_staging();
  }

  const GroupContext<TableOf>& context_;
  Warp warp_;
  int64_t first_;  // element
  unsigned size_;
};

}  // namespace fusedopt::cuda
