// Which kernel a call gets, with how many warps and blocks, and how its shared memory is laid out. Host code
// without CUDA: the emulator of the tests uses it too.
#pragma once

#include <type_traits>

#include "backward.h"
#include "forward.h"
#include "launch.h"
#include "settings.h"

namespace vt {
namespace cuda {

constexpr bool is_backward(Op op) { return op >= Op::tokenize_backward; }

struct Plan {
  int warps = 0, ranks = 1, stages = 0;
  int blocks = 0;  // of a multiprocessor
  int value = -1;  // of two plans, the one with more in flight or else with more warps is faster
  Places places = {};
};

constexpr int kMaxStages = 4;
// Enough bytes for a multiprocessor to wait for: from then on another warp is worth more than another stage.
constexpr int64_t kInFlight = 32 * 1024;

// The maps that a tile consists of.
template <class K>
int maps_of(const Call& call) {
  if (!K::BACKWARD) return 1 + (K::PROJECT && call.residual.data != nullptr);
  return 1 + (K::PROJECT && call.grad_map.data != nullptr) +
         (K::PROJECT && K::TOKENIZE && call.residual.data != nullptr);
}

template <class K>
Places places_of(const Call& call, int warps, int stages) {
  Places places{};
  uint32_t end = 0;
  const auto take = [&end](uint32_t bytes) {
    const uint32_t at = end;
    end += (bytes + 15) / 16 * 16;
    return at;
  };
  const uint32_t slices = warps * K::Tile::kBytes, banks = warps * K::RowBank::kBytes;
  places.map = slices;
  places.stage = maps_of<K>(call) * slices;
  places.ring = take(stages * places.stage);
  if (K::BACKWARD && K::PROJECT && K::TOKENIZE) places.again = take(slices);
  if (K::PROJECT) places.keys = take(banks), places.values = take(banks);
  if (K::TOKENIZE) places.queries = take(banks);
  if (K::BACKWARD && K::TOKENIZE) places.grad_tokens = take(banks);
  places.scores = take((warps + 3) / 4 * 4 * K::kScoreMatrices * K::kRows * K::kScorePitch);
  if (K::PROJECT || K::BACKWARD) places.by_pixel = take(K::TP * K::kByPixel);
  if (K::TOKENIZE || K::BACKWARD)
    places.by_token = take((K::BACKWARD && K::PROJECT ? 2 : 1) * K::kRows * K::kByToken);
  if (K::BACKWARD && K::PROJECT && K::TOKENIZE) {
    places.weights = take(K::TP * (K::kRows * 4 + 16));
    places.used = take(K::TP * 4);
  }
  if (K::TOKENIZE && !K::BACKWARD) {
    places.highest = take(K::kRows * 4), places.total = take(K::kRows * 8), places.scale = take(K::kRows * 4);
    places.totals = take(K::kRows * K::TP * 8);
    places.extra = take(call.queries_count * call.extra_columns * 4);
  }
  if (K::TOKENIZE && K::BACKWARD && call.dpixel_bias.data != nullptr)
    places.dlogits = take(K::TP * K::kRows * 4);
  if (K::TOKENIZE && K::BACKWARD) places.delta = take(K::kRows * 4), places.lse = take(K::kRows * 4);
  if (K::PROJECT || call.plain_sums != 0) places.token_bias = take(K::kRows * 4);
  if (K::BACKWARD) places.dtoken_bias = places.scores;  // which are read by then
  places.bytes = end;
  return places;
}

// The fewest blocks of a cluster that hold all channels and two stages of tiles, and the number of stages
// with the highest `value`; by a setting, the largest.
template <class K>
bool plan_of(const Call& call, const Device& device, Plan& plan, const Setting* setting) {
  const int channels = call.channels > call.out_channels ? call.channels : call.out_channels;
  const int slices = (channels + K::Tile::kChannels - 1) / K::Tile::kChannels;
  for (int ranks = setting == nullptr ? 1 : setting->ranks; ranks <= device.max_ranks; ranks *= 2) {
    const int warps = (slices + ranks - 1) / ranks;
    if (warps > K::kMostWarps) continue;
    plan.value = -1;
    for (int stages = setting == nullptr ? kMaxStages : setting->stages; stages >= 2; --stages) {
      const Places places = places_of<K>(call, warps, stages);
      if (places.bytes > static_cast<uint32_t>(device.shared_bytes)) continue;
      // A multiprocessor has 1 KB more than a block may have, and keeps 1 KB of each.
      const int fit = (device.shared_bytes + 1024) / (static_cast<int>(places.bytes) + 1024);
      const int blocks = fit < K::kMostWarps / warps ? fit : K::kMostWarps / warps;
      const int64_t in_flight = static_cast<int64_t>(blocks) * (stages - 1) * places.stage;
      const int value =
          static_cast<int>(in_flight < kInFlight ? in_flight : kInFlight) / 1024 * kMaxWarps + blocks * warps;
      if (value <= plan.value) continue;
      plan = {warps, ranks, stages, blocks, value, places};
      if (setting != nullptr) break;
    }
    if (plan.value >= 0) return true;
  }
  return false;
}

// ---- the instances ----

// SMALL: with fewer pixels, where there is such a kernel.
template <class T, Layout LAYOUT, int MT, int NT, Op OP, bool SMALL = false>
struct Instance {
  static constexpr bool kBackward = OP >= Op::tokenize_backward;
  static constexpr bool kProject = OP != Op::tokenize && OP != Op::tokenize_backward;
  static constexpr bool kTokenize = OP != Op::project && OP != Op::project_backward;
  // The most channels of a warp for which sums leave registers for 32 pixels. Where pixels are contiguous,
  // more of them are worth more than registers.
  static constexpr bool kLast = LAYOUT == Layout::last;
  static constexpr int kMostMt = kBackward                               ? (NT > 2   ? 0
                                                                            : !kLast ? 4
                                                                                     : 2)
                                 : OP != Op::project_tokenize && NT == 2 ? 8
                                                                         : 4;
  static constexpr int kMostPixels = sizeof(T) == 4 || NT >= 8 || MT > kMostMt ? 16 : 32;
  static constexpr int TP = SMALL ? 16 : kMostPixels;
  // Three banks of rows leave little shared memory for tiles.
  static constexpr bool kHasSmall =
      kLast && OP == Op::project_tokenize && NT == 2 && MT == 4 && kMostPixels == 32;
  using type = std::conditional_t<kBackward, Backward<T, LAYOUT, MT, NT, TP, kProject, kTokenize>,
                                  Forward<T, LAYOUT, MT, NT, TP, kProject, kTokenize>>;
};

// The most channels of a warp, in units of 16, for 8 `nt` rows: more sums do not fit into its registers.
template <class T>
constexpr int largest_mt(Op op, int nt) {
  const int column = nt == 2 ? 0 : nt == 4 ? 1 : 2;
  constexpr int of_16_bits[6][3] = {{8, 8, 4}, {8, 8, 4}, {8, 4, 4}, {8, 4, 2}, {8, 4, 2}, {4, 2, 1}};
  constexpr int of_floats[6][3] = {{4, 4, 2}, {4, 4, 2}, {4, 4, 2}, {4, 2, 2}, {4, 2, 1}, {2, 1, 1}};
  const int row = static_cast<int>(op);
  return sizeof(T) == 4 ? of_floats[row][column] : of_16_bits[row][column];
}

// Whether there is such a kernel; small slices are for few channels.
template <class T>
constexpr bool exists(Op op, int mt, int nt) {
  const int largest = largest_mt<T>(op, nt);
  return mt <= largest && (mt >= 2 || largest == 1);
}

// Its address stands for a kernel.
template <class K>
constexpr char mark = 0;

constexpr Dtype dtype_of(float) { return Dtype::float32; }
constexpr Dtype dtype_of(Bf16) { return Dtype::bfloat16; }
constexpr Dtype dtype_of(Fp16) { return Dtype::float16; }

// Of the kernels for so many rows, the one whose plan has the fewest blocks in a cluster, then the highest
// value, then the most channels for each warp.
template <class T, Layout LAYOUT, Op OP, int NT, class Body>
bool with_rows(const Call& call, const Device& device, const Body& body) {
  const int channels = call.channels > call.out_channels ? call.channels : call.out_channels;
  const void* chosen = nullptr;
  Plan best;
  // Calls body(instance) for each kernel.
  const auto for_each = [](const auto& body) {
    const auto with_slice = [&](auto mt) {
      constexpr int MT = decltype(mt)::value;
      if constexpr (exists<T>(OP, MT, NT)) {
        using Large = Instance<T, LAYOUT, MT, NT, OP>;
        body(Large{});
        if constexpr (Large::kHasSmall) body(Instance<T, LAYOUT, MT, NT, OP, true>{});
      }
    };
    with_slice(std::integral_constant<int, 8>{});
    with_slice(std::integral_constant<int, 4>{});
    with_slice(std::integral_constant<int, 2>{});
    with_slice(std::integral_constant<int, 1>{});
  };
  const auto consider_all = [&](const Setting* setting) {
    for_each([&](auto instance) {
      using K = typename decltype(instance)::type;
      Plan plan;
      if (setting != nullptr && setting->mt != K::MT) return;
      if (!plan_of<K>(call, device, plan, setting)) return;
      if (chosen == nullptr || plan.ranks < best.ranks ||
          (plan.ranks == best.ranks && plan.value > best.value)) {
        chosen = &mark<K>, best = plan;
      }
    });
  };
  const Setting* setting = find_setting(OP, dtype_of(T{}), maps_like(LAYOUT, call.x), 8 * NT, channels);
  if (setting != nullptr) consider_all(setting);
  if (chosen == nullptr) consider_all(nullptr);
  for_each([&](auto instance) {
    using K = typename decltype(instance)::type;
    if (chosen == &mark<K>) body(K{}, best);
  });
  return chosen != nullptr;
}

// Calls body(kernel, plan) with the kernel for a call of OP; false where there is none.
template <class T, Op OP, class Body>
bool with_kernel(const Call& call, Layout layout, const Device& device, const Body& body) {
  const int rows = room_for_rows(call);
  if (call.keys_count > rows || call.queries_count > rows) return false;
  const auto of_layout = [&](auto of) {
    constexpr Layout kLayout = decltype(of)::value;
    if (rows == 16) return with_rows<T, kLayout, OP, 2>(call, device, body);
    if (rows == 32) return with_rows<T, kLayout, OP, 4>(call, device, body);
    return with_rows<T, kLayout, OP, 8>(call, device, body);
  };
  using std::integral_constant;
  if (layout == Layout::last) return of_layout(integral_constant<Layout, Layout::last>{});
  if constexpr (sizeof(T) == 2) {
    if (layout == Layout::first) return of_layout(integral_constant<Layout, Layout::first>{});
  }
  return of_layout(integral_constant<Layout, Layout::shifted>{});
}

// Whether there are results for sets of samples, or (shared == false) for single ones.
template <class K>
bool has_rows_of(const Call& call, bool shared) {
  const auto is = [&](int64_t batch_stride) { return (batch_stride == 0) == shared; };
  return (K::TOKENIZE && (K::BACKWARD ? is(call.queries.batch) : !shared)) ||
         (K::BACKWARD && ((K::PROJECT && (is(call.keys.batch) || is(call.values.batch))) ||
                          (call.dtoken_bias.data != nullptr && is(call.token_bias.batch))));
}
// Whether some of these may be sums over several clusters.
template <class K>
bool has_parts_of(const Call& call, bool shared) {
  return has_rows_of<K>(call, shared) && (shared ? call.clusters > 1 : call.unit < call.tiles_per_sample);
}

template <class K>
int64_t part_size(const Call& call) {
  if constexpr (K::BACKWARD) {
    return Part::of(call, K::PROJECT, K::TOKENIZE, K::kRows).size;
  } else {
    return K::part_size(call);
  }
}

// Fills in what depends on the kernel. `clusters`: how many run at a time.
template <class K>
void share_out(Call& call, const Plan& plan, int clusters, bool always_splits) {
  call.tiles_per_sample = (call.pixels + K::TP - 1) / K::TP;
  call.stages = plan.stages;
  call.places = plan.places;
  const int64_t samples = static_cast<int64_t>(call.batch) * call.query_heads,
                tiles = samples * call.tiles_per_sample;
  // In tiles: what the busiest cluster does if no sample is split; or if all shares are equal, and parts of
  // samples are written, read and launched for.
  const int64_t whole = (samples + clusters - 1) / clusters * call.tiles_per_sample,
                even = (tiles + clusters - 1) / clusters;
  const int64_t tile_bytes =
      static_cast<int64_t>(maps_of<K>(call) + (K::PROJECT || K::BACKWARD)) * plan.places.map * plan.ranks;
  const int64_t parts = has_rows_of<K>(call, false) ? 2 + 12 * part_size<K>(call) / tile_bytes : 0;
  call.unit = !always_splits && 10 * whole <= 11 * (even + parts) ? call.tiles_per_sample : 1;
  const int64_t units = tiles / call.unit;
  call.clusters = static_cast<int>(clusters < units ? clusters : units);
  call.units_each = units / call.clusters, call.longer = static_cast<int32_t>(units % call.clusters);
}

// Makes a call of OP on what the launcher stands for. Returns null, or what is wrong.
template <class T, Op OP, class Launcher>
const char* execute(Call call, Layout layout, Launcher& launcher) {
  const char* error = nullptr;
  const bool found = with_kernel<T, OP>(call, layout, launcher.device, [&](auto kernel, const Plan& plan) {
    using K = decltype(kernel);
    int clusters = 0;
    if ((error = launcher.template clusters<K>(plan, clusters)) != nullptr) return;
    share_out<K>(call, plan, clusters, launcher.device.always_splits);

    const int64_t parts = has_parts_of<K>(call, true) || has_parts_of<K>(call, false)
                              ? 2 * static_cast<int64_t>(call.clusters) * part_size<K>(call)
                              : 0;
    const bool sums_biases = K::BACKWARD && call.dpixel_bias.data != nullptr && call.query_heads > 1;
    const int64_t map_of_biases = static_cast<int64_t>(call.batch) * call.pixels;
    const int64_t biases = sums_biases ? call.query_heads * map_of_biases : 0;
    const int64_t values = call.dextra_values == nullptr ? 0 : map_of_biases * call.extra_columns;
    float* workspace = nullptr;
    if (parts + biases + values > 0 &&
        (error = launcher.floats(parts + biases + values, workspace)) != nullptr)
      return;
    call.parts = workspace, call.pixel_parts = workspace + parts,
    call.extra_parts = workspace + parts + biases;

    if ((error = launcher.template start<K>(call, plan)) != nullptr) return;
    if (has_parts_of<K>(call, true)) {
      if constexpr (K::BACKWARD) {
        using C = CombineRows<T, K::PROJECT, K::TOKENIZE, true, 4>;
        error = launcher.template start_small<C>(call, Set::splits(call, call.batch), part_size<K>(call) * 4);
        if (error != nullptr) return;
      }
    }
    if (has_parts_of<K>(call, false)) {
      const int64_t samples = Set::splits(call, 1);
      const auto combine = [&](auto lanes) {
        [[maybe_unused]] constexpr int LANES = decltype(lanes)::value;
        if constexpr (K::BACKWARD) {
          using C = CombineRows<T, K::PROJECT, K::TOKENIZE, false, LANES>;
          error = launcher.template start_small<C>(call, samples, part_size<K>(call) * LANES);
        } else if constexpr (K::TOKENIZE) {
          using C = CombineTokens<T, LANES>;
          error = launcher.template start_small<C>(call, samples, C::elements(call));
        }
      };
      if (call.clusters / samples < kManyParts) {
        combine(std::integral_constant<int, 1>{});
      } else {
        combine(std::integral_constant<int, 4>{});
      }
      if (error != nullptr) return;
    }
    if (biases > 0 || values > 0) {
      const int64_t of_values = static_cast<int64_t>(call.pixels) * call.extra_columns;
      const int64_t most = sums_biases && map_of_biases > of_values ? map_of_biases : of_values;
      error = launcher.template start_small<SumPixels<T>>(
          call, (most + SumPixels<T>::kThreads - 1) / SumPixels<T>::kThreads, 1);
    }
  });
  return found ? error : does_not_fit;
}

}  // namespace cuda
}  // namespace vt
