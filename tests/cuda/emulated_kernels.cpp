// The CUDA kernels of one op and dtype (VT_OP, VT_TYPE), on the emulator.
#include "emulated.h"

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <vector>

#include "kernels.h"

namespace vt {
namespace cuda {
namespace {

// The bytes that a call may use.
class Ranges {
 public:
  Ranges(const Call& call, Layout layout, int64_t size) : call_(call), layout_(layout), size_(size) {
    emulator::forget();
    const int64_t heads = call.query_heads, c = call.channels * heads, d = call.out_channels * heads;
    map("x", call.x, c, false);
    map("residual", call.residual, d, false);
    map("grad_map", call.grad_map, d, false);
    map("map", call.map, d, true);
    map("dx", call.dx, c, true);
    map("dresidual", call.dresidual, d, true);
    const int64_t l = call.keys_count / call.num_heads, q = call.queries_count, b = call.batch, n = call.pixels;
    const int64_t p = call.extra_columns;
    const int64_t of_keys = rows(call.keys), of_values = rows(call.values), of_queries = rows(call.queries);
    add("keys", call.keys.data, of_keys * call.keys_count * c * size, false);
    add("dkeys", call.dkeys, of_keys * call.keys_count * c * size, true);
    add("values", call.values.data, of_values * l * d * size, false);
    add("dvalues", call.dvalues, of_values * l * d * size, true);
    add("queries", call.queries.data, of_queries * q * d * size, false);
    add("dqueries", call.dqueries, of_queries * q * d * size, true);
    add("extra_values", call.extra_values.data, n * p * size, false);
    add("dextra_values", call.dextra_values, n * p * size, true);
    const int64_t of_bias = call.token_bias.batch == 0 ? 1 : b;
    biases("token_bias", call.token_bias, of_bias * call.keys_count, false);
    biases("dtoken_bias", call.dtoken_bias, of_bias * call.keys_count, true);
    biases("pixel_bias", call.pixel_bias, b * n, false);
    biases("dpixel_bias", call.dpixel_bias, b * n, true);
    add("mask", call.mask, b * n, false);
    add("grad_tokens", call.grad_tokens, b * q * d * size, false);
    add("grad_extra", call.grad_extra, b * q * p * size, false);
    add("grad_lse", call.grad_lse, 4 * b * heads * q, false);
    add("exact", call.exact, 4 * b * q * (d + p), false);
    add("lse", call.lse, 4 * b * heads * q, false);
    add("tokens", call.tokens, b * q * (d + p) * size, true);
    add("exact_out", call.exact_out, 4 * b * q * (d + p), true);
    add("lse_out", call.lse_out, 4 * b * heads * q, true);
  }

 private:
  void add(const char* name, const void* data, int64_t bytes, bool writable) {
    if (data != nullptr) emulator::announce(name, const_cast<void*>(data), bytes, writable);
  }
  void biases(const char* name, const Biases& biases, int64_t count, bool writable) {
    add(name, biases.data, count * (biases.is_float ? 4 : size_), writable);
  }
  int64_t rows(const Rows& rows) const { return rows.batch == 0 ? 1 : call_.batch; }
  void map(const char* name, const Map& map, int64_t channels, bool writable) {
    const int64_t outer = layout_ == Layout::last ? call_.pixels : channels, inner = layout_ == Layout::last ? channels : call_.pixels;
    add(name, map.data, ((call_.batch - 1) * map.batch + (outer - 1) * map.row + inner) * size_, writable);
  }

  const Call& call_;
  Layout layout_;
  int64_t size_;
};

struct EmulatedLauncher {
  const Host& host;
  const Device device = host.device;
  std::vector<std::unique_ptr<float[]>> workspaces = {};

  explicit EmulatedLauncher(const Host& host) : host(host) {}

  template <class K>
  const char* clusters(const Plan&, int& count) {
    count = emulated::conditions.clusters;
    emulated::report = {};
    return nullptr;
  }

  const char* floats(int64_t count, float*& workspace) {
    workspaces.emplace_back(new float[count]);
    workspace = workspaces.back().get();
    for (int64_t i = 0; i < count; ++i) workspace[i] = std::numeric_limits<float>::quiet_NaN();
    workspace_ = workspace, count_ = count;
    return nullptr;
  }

  template <class K>
  const char* start(const Call& call, const Plan& plan) {
    emulated::report = {plan.warps, plan.ranks, plan.stages, K::MT,
                        K::NT,      K::TP,      call.clusters, call.unit, static_cast<int32_t>(plan.places.bytes), 0};
    const Ranges ranges(call, K::LAYOUT, K::kSize);
    return launch<K>(call, call.clusters * plan.ranks, 1, plan.ranks, 32 * plan.warps, plan.places.bytes);
  }

  template <class K>
  const char* start_small(const Call& call, int64_t x, int64_t elements) {
    const auto pieces = static_cast<unsigned>((elements + K::kThreads - 1) / K::kThreads);
    return launch<K>(call, static_cast<unsigned>(x), pieces, 1, K::kThreads, 0);
  }

 private:
  template <class K>
  const char* launch(const Call& call, unsigned x, unsigned y, int ranks, int threads, uint32_t shared_bytes) {
    ++emulated::report.launches;
    if (emulated::report.launches == 1 && count_ > 0) emulator::announce("workspace", workspace_, 4 * count_, true);
    const emulator::Options options = {emulated::conditions.seed, static_cast<emulator::Copies>(emulated::conditions.copies)};
    const emulator::Grid grid = {static_cast<int>(x), static_cast<int>(y)};
    emulated::message = emulator::launch(grid, ranks, threads, shared_bytes, options, [&call] { K::run(call); }).fault;
    return emulated::message.empty() ? nullptr : emulated::message.c_str();
  }

  float* workspace_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace
}  // namespace cuda
}  // namespace vt

VT_DEFINE_RUN(EmulatedLauncher)
