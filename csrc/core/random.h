// The random bits of stochastic rounding: a function of what is rounded, with no state of its own.
// The same on any engine, whatever is cut up how, and after a resume.
//
// Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011: Philox4x32-7,
// the fewest rounds with which it passes all of BigCrush (table 2).
#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/math.h"

namespace fusedopt {

// Which bits an update draws.
struct Draws {
  uint64_t seed = 0;
  uint32_t param = 0;  // its number in the order of the parameter groups
  uint32_t step = 0;   // the count of the step that rounds
  int64_t first = 0;   // index of the update's first element; not 0 in a part of a larger tensor

  // Those of the elements from one of the update's on.
  Draws from(int64_t element) const {
    Draws draws = *this;
    draws.first += element;
    return draws;
  }
};

// Of so many neighbouring elements kDrawCalls calls of the generator give 16 bits to each. The
// first two words of call c go to elements 4 c to 4 c + 3, lower halves first, and the others to
// the four that lie 128 further on: so the bits of a group are what registers of calls hold, and a
// thread that makes one call updates two packs of four.
constexpr int64_t kDrawGroup = 256, kDrawCalls = 32;

// Turns counters into random bits, several counters at once: each of the four words of Lanes has
// one or several integers of 64 bits, of which the lower halves count. multiply(lanes, factor) is
// the product of these with a factor of 32 bits, all 64 bits of it.
template <class Lanes, size_t count, class Multiply>
FUSEDOPT_FN void philox(Lanes (&words)[4][count], uint64_t key, Multiply multiply) {
  constexpr uint32_t kFactors[] = {0xd2511f53, 0xcd9e8d57};
  constexpr uint32_t kKeySteps[] = {0x9e3779b9, 0xbb67ae85};
  constexpr int kRounds = 7;
  auto low = static_cast<uint32_t>(key);
  auto high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    for (size_t c = 0; c < count; ++c) {
      const Lanes first = multiply(words[0][c], kFactors[0]);
      const Lanes second = multiply(words[2][c], kFactors[1]);
      words[0][c] = (second >> 32) ^ words[1][c] ^ uint64_t { low };
      words[1][c] = second;
      words[2][c] = (first >> 32) ^ words[3][c] ^ uint64_t { high };
      words[3][c] = first;
    }
    low += kKeySteps[0];
    high += kKeySteps[1];
  }
}

// The counter of call 0 of a group of one operand; that of call c has c added to its first word.
struct DrawCounter {
  uint32_t words[4];

  FUSEDOPT_FN DrawCounter(const Draws& draws, uint32_t operand, int64_t group) {
    const auto call = static_cast<uint64_t>(group * kDrawCalls);
    words[0] = static_cast<uint32_t>(call);
    words[1] = static_cast<uint32_t>(call >> 32) | operand << 24;
    words[2] = draws.param;
    words[3] = draws.step;
  }
};

}  // namespace fusedopt
