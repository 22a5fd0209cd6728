// What plan.h decides for calls of one op in one dtype (VT_OP, VT_TYPE), and what the kernels then do for a
// tile and for a sample.
//
// Reads words: "gpu" and its facts; "registers" of each instance; then "call" and its sizes, as often as
// wanted. Writes a line of JSON for each call.
#include "cuda_on_cpu.h"

#include <cstdio>
#include <iostream>
#include <string>
#include <tuple>

#include "kernels.h"

namespace vt {
namespace cuda {

const char* const does_not_fit = "no kernel fits";
const Setting* find_setting(Op, Dtype, Maps, int, int) { return nullptr; }

namespace {

struct Gpu {
  Device device;
  int shared_bytes, registers, threads;  // of a multiprocessor
};

struct Tables {
  Gpu gpu;
  std::map<std::tuple<int, int, int, int>, int> registers;  // by layout, MT, NT and TP
};

// The samples of a map lie close together, and an operand has an address, of which nothing is read.
float memory[4];

class CountingLauncher {
 public:
  explicit CountingLauncher(const Tables& tables) : device(tables.gpu.device), tables_(tables) {}

  const Device device;

  template <class K>
  const char* clusters(const Plan& plan, int& count) {
    const Gpu& gpu = tables_.gpu;
    const int threads = 32 * plan.warps;
    const int registers = (registers_of<K>() + 7) / 8 * 8 * threads;
    // CUDA keeps 1 KB of each block.
    each_ = std::min({gpu.registers / registers, gpu.threads / threads,
                      gpu.shared_bytes / (static_cast<int>(plan.places.bytes) + 1024), 32});
    if (each_ == 0) return does_not_fit;
    count = each_ * device.processors / plan.ranks;
    return nullptr;
  }

  const char* floats(int64_t, float*& workspace) {
    workspace = memory;
    return nullptr;
  }

  template <class K>
  const char* start(const Call& call, const Plan& plan) {
    const Counts two = count<K>(call, plan, 2), four = count<K>(call, plan, 4);
    std::printf("{\"kernel\": \"%s\", \"layout\": %d, \"mt\": %d, \"nt\": %d, \"tp\": %d, ",
                K::BACKWARD ? "backward" : "forward", static_cast<int>(K::LAYOUT), K::MT, K::NT, K::TP);
    std::printf("\"warps\": %d, \"ranks\": %d, \"stages\": %d, \"shared_bytes\": %u, \"blocks_each\": %d, ",
                plan.warps, plan.ranks, plan.stages, plan.places.bytes, each_);
    const bool has_parts = has_parts_of<K>(call, true) || has_parts_of<K>(call, false);
    std::printf("\"clusters\": %d, \"unit\": %d, \"tiles_per_sample\": %d, \"part_floats\": %lld, ",
                call.clusters, call.unit, call.tiles_per_sample,
                static_cast<long long>(has_parts ? part_size<K>(call) : 0));
    // A sample of two tiles and one of four differ by two tiles.
    Counts tile, sample;
    for (int i = 0; i < kinds; ++i) {
      tile.instructions[i] = (four.instructions[i] - two.instructions[i]) / 2;
      sample.instructions[i] = 2 * two.instructions[i] - four.instructions[i];
    }
    tile.passes = (four.passes - two.passes) / 2, sample.passes = 2 * two.passes - four.passes;
    print("tile", tile);
    std::printf(", ");
    print("sample", sample);
    std::printf("}\n");
    return nullptr;
  }

  template <class K>
  const char* start_small(const Call&, int64_t, int64_t) {
    return nullptr;
  }

 private:
  using Counts = emulator::Counts;
  static constexpr int kinds = emulator::kinds;

  template <class K>
  int registers_of() const {
    return tables_.registers.at({static_cast<int>(K::LAYOUT), K::MT, K::NT, K::TP});
  }

  // What all warps of a block do for one sample of so many tiles.
  template <class K>
  static Counts count(Call call, const Plan& plan, int tiles) {
    call.batch = call.query_heads = call.clusters = call.unit = 1;
    call.tiles_per_sample = tiles;
    call.units_each = tiles, call.longer = 0;
    call.pixels = tiles * K::TP;
    emulator::counter.threads = 32 * plan.warps;
    emulator::counter.ranks = plan.ranks;
    Counts counts;
    for (int warp = 0; warp < plan.warps; ++warp) {
      emulator::counter.run_warp(warp, counts, [&call] { K::run(call); });
    }
    return counts;
  }

  static void print(const char* name, const Counts& counts) {
    int64_t sum = 0;
    for (const int64_t each : counts.instructions) sum += each;
    std::printf("\"%s\": {\"counted\": %lld, \"products\": %lld, \"passes\": %lld}", name,
                static_cast<long long>(sum), static_cast<long long>(counts.instructions[emulator::product]),
                static_cast<long long>(counts.passes));
  }

  const Tables& tables_;
  int each_ = 0;
};

// A call as models make it: keys and values of each sample, queries that the batch shares, Y = X + ... .
Call call_of(Op op, int batch, int pixels, int channels, int tokens, int64_t row) {
  const bool project = op != Op::tokenize && op != Op::tokenize_backward;
  const bool tokenize = op != Op::project && op != Op::project_backward;
  const bool backward = is_backward(op);
  Call call;
  call.batch = batch, call.pixels = pixels, call.channels = call.out_channels = channels;
  const Map map = {memory, static_cast<int64_t>(pixels) * channels, row};
  call.x = map;
  if (project) {
    call.keys_count = tokens;
    call.keys = call.values = {memory, static_cast<int64_t>(tokens) * channels};
    call.residual_is_input = 1;
    (backward ? call.grad_map : call.map) = map;
  }
  if (tokenize) {
    call.queries_count = tokens;
    call.queries = {memory, 0};
  }
  if (backward) {
    call.dx = map;
    if (project) call.dkeys = call.dvalues = memory;
    if (tokenize) call.dqueries = memory;
    call.grad_tokens = memory, call.exact = call.lse = memory;
  } else if (tokenize) {
    call.tokens = memory, call.lse_out = memory;
  }
  return call;
}

int run() {
  Tables tables;
  std::string word;
  while (std::cin >> word) {
    if (word == "gpu") {
      Gpu& gpu = tables.gpu;
      std::cin >> gpu.device.processors >> gpu.device.shared_bytes >> gpu.device.max_ranks >>
          gpu.shared_bytes >> gpu.registers >> gpu.threads;
    } else if (word == "registers") {
      int layout, mt, nt, tp;
      std::cin >> layout >> mt >> nt >> tp >> tables.registers[{layout, mt, nt, tp}];
    } else {
      int layout, batch, pixels, channels, tokens;
      std::cin >> layout >> batch >> pixels >> channels >> tokens;
      const Layout of = static_cast<Layout>(layout);
      const Call call =
          call_of(Op::VT_OP, batch, pixels, channels, tokens, of == Layout::last ? channels : pixels);
      CountingLauncher launcher(tables);
      if (const char* error = execute<VT_TYPE, Op::VT_OP>(call, of, launcher))
        std::printf("{\"refused\": \"%s\"}\n", error);
    }
  }
  return 0;
}

}  // namespace
}  // namespace cuda
}  // namespace vt

int main() { return vt::cuda::run(); }
