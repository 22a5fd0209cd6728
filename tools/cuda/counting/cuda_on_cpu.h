// Runs a warp of the kernels on a CPU to count what it does, not to compute: memory reads as zero, and lanes
// run one after the other. Stands in for the emulator of the tests, whose functions these are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace emulator {

enum class Element { bf16, fp16, tf32 };

enum Kind { matrix_load, shared_load, shared_store, copy, load, store, product, shuffle, barrier, kinds };

// Instructions of warps, and passes of 128 bytes through shared memory or, for global memory, its data path.
struct Counts {
  int64_t instructions[kinds] = {};
  int64_t passes = 0;
};

struct Event {
  Kind kind;
  int bytes;
  uint32_t at;  // in shared memory
};

// What a lane does between two operations that all lanes of a warp do together.
using Section = std::vector<Event>;

struct Counter {
  int thread = 0, threads = 32, ranks = 1;
  std::vector<std::vector<Section>> lanes;  // by lane
  std::vector<std::vector<bool>> votes;     // of each ballot, by lane
  bool knows_votes = false;
  size_t ballots = 0;

  int lane() const { return thread % 32; }
  void note(Kind kind, int bytes = 0, uint32_t at = 0) { lanes[lane()].back().push_back({kind, bytes, at}); }
  void together() { lanes[lane()].emplace_back(); }

  // What a warp does in body(). Twice: first to learn what its lanes vote.
  template <class Body>
  void run_warp(int warp, Counts& counts, const Body& body) {
    votes.assign(32, {});
    for (int pass = 0; pass < 2; ++pass) {
      knows_votes = pass == 1;
      lanes.assign(32, std::vector<Section>(1));
      for (int i = 0; i < 32; ++i) {
        thread = 32 * warp + i, ballots = 0;
        body();
      }
    }
    for (size_t i = 0; i < lanes[0].size(); ++i) add(i, counts);
  }

 private:
  // The n-th event of a kind in a section is the same instruction in all lanes.
  void add(size_t section, Counts& counts) const {
    std::map<std::pair<Kind, int>, std::vector<std::vector<uint32_t>>> found;
    for (int i = 0; i < 32; ++i) {
      std::map<std::pair<Kind, int>, size_t> index;
      for (const Event& event : lanes[i][section]) {
        const std::pair<Kind, int> key = {event.kind, event.bytes};
        auto& instructions = found[key];
        const size_t n = index[key]++;
        if (n == instructions.size()) instructions.emplace_back(32, nowhere);
        instructions[n][i] = event.at;
      }
    }
    for (const auto& [key, instructions] : found) {
      counts.instructions[key.first] += static_cast<int64_t>(instructions.size());
      for (const auto& addresses : instructions) counts.passes += passes(key.first, key.second, addresses);
    }
  }

  // Lanes take part in groups that access up to 128 bytes. Each bank of 4 bytes gives one word in a pass.
  static int passes(Kind kind, int bytes, const std::vector<uint32_t>& addresses) {
    if (kind == shuffle) return 1;
    if (kind == load || kind == store) return std::max(bytes / 4, 1);
    if (kind == product || kind == barrier) return 0;
    const int group = bytes <= 4 ? 32 : 128 / bytes;
    int sum = 0;
    for (int first = 0; first < 32; first += group) {
      std::map<uint32_t, std::vector<uint32_t>> words;  // by bank
      for (int i = first; i < first + group; ++i) {
        if (addresses[i] == nowhere) continue;
        for (uint32_t word = addresses[i] / 4; word < (addresses[i] + bytes + 3) / 4; ++word) {
          auto& known = words[word % 32];
          if (std::find(known.begin(), known.end(), word) == known.end()) known.push_back(word);
        }
      }
      size_t most = 0;
      for (const auto& [bank, known] : words) most = std::max(most, known.size());
      sum += static_cast<int>(most);
    }
    return sum;
  }

  static constexpr uint32_t nowhere = ~uint32_t{0};
};

inline Counter counter;

inline int thread() { return counter.thread; }
inline int threads() { return counter.threads; }
inline int block_x() { return 0; }
inline int block_y() { return 0; }
inline int grid_x() { return counter.ranks; }
inline int cluster_size() { return counter.ranks; }
inline int cluster_rank() { return 0; }

template <class T>
T read_shared(uint32_t at) {
  counter.note(shared_load, sizeof(T), at);
  return T{};
}
template <class T>
T read_shared_of(int, uint32_t at) {
  return read_shared<T>(at);
}
template <class T>
void write_shared(uint32_t at, T) {
  counter.note(shared_store, sizeof(T), at);
}
template <class T>
T read_global(const T*) {
  counter.note(load, sizeof(T));
  return T{};
}
template <class T>
void write_global(T*, T) {
  counter.note(store, sizeof(T));
}
inline void copy_async(uint32_t to, const void*, int bytes, int) { counter.note(copy, bytes, to); }
inline void copy_commit() {}
inline void copy_wait(int) {}

inline void sync_warp() { counter.together(); }
inline void sync_block() {
  counter.note(barrier);
  counter.together();
}
inline void sync_cluster() { sync_block(); }
inline float shuffle_xor(float value, int) {
  counter.note(shuffle);
  counter.together();
  return value;
}
inline uint32_t ballot(bool value) {
  const size_t index = counter.ballots++;
  counter.together();
  if (!counter.knows_votes) {
    counter.votes[counter.lane()].push_back(value);
    return ~uint32_t{0};
  }
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(counter.votes[i][index]) << i;
  return bits;
}
inline void ldmatrix(uint32_t (&words)[4], uint32_t at, bool) {
  for (uint32_t& word : words) word = 0;
  counter.note(matrix_load, 16, at);
  counter.together();
}
inline void stmatrix(uint32_t at, const uint32_t (&)[4]) {
  counter.note(shared_store, 16, at);
  counter.together();
}
inline void mma(Element, float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {
  counter.note(product);
  counter.together();
}

inline uint32_t pack_bf16(float, float) { return 0; }
inline uint32_t pack_fp16(float, float) { return 0; }
inline float float_of_fp16(uint16_t) { return 0.f; }
inline float as_float(uint32_t) { return 0.f; }
inline uint32_t as_bits(float) { return 0; }
inline float power_of_two(float x) { return x; }
inline float logarithm(float x) { return x; }
inline float multiply_add(float a, float b, float c) { return a * b + c; }

}  // namespace emulator
