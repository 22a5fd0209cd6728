// The CUDA kernels of one op and dtype (VT_OP, VT_TYPE) on the emulator, for ctypes.
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "plan.h"

namespace {

using namespace vt;
using namespace vt::cuda;

// How a call is emulated. Zeros leave the choice to the plan.
struct Conditions {
  uint64_t seed;
  int32_t copies;    // emulator::Copies
  int32_t clusters;  // that run at a time
  Device device;
};

// A tensor that kernels may use.
struct Tensor {
  const char* name;
  void* data;
  int64_t bytes;
  int32_t writable;
};

// What happened.
struct Report {
  int32_t warps, ranks, stages, mt, nt, tp, clusters, unit, launches;
  int32_t shared_bytes;
};

std::string& message() {
  static std::string text;
  return text;
}

struct Launcher {
  Device device;
  const Conditions& conditions;
  Report& report;
  std::vector<std::unique_ptr<float[]>> workspaces;

  template <class K>
  const char* clusters(const Plan&, int& count) {
    count = conditions.clusters;
    return nullptr;
  }

  const char* floats(int64_t count, float*& workspace) {
    workspaces.emplace_back(new float[count]);
    workspace = workspaces.back().get();
    for (int64_t i = 0; i < count; ++i) workspace[i] = std::numeric_limits<float>::quiet_NaN();
    emulator::announce("workspace", workspace, 4 * count, true);
    return nullptr;
  }

  template <class K>
  const char* start(const Call& call, const Plan& plan) {
    report = {plan.warps, plan.ranks, plan.stages, K::MT, K::NT, K::TP, call.clusters, call.unit, 0, static_cast<int32_t>(plan.places.bytes)};
    return launch(call.clusters * plan.ranks, 1, plan.ranks, 32 * plan.warps, plan.places.bytes, [&] { K::run(call); });
  }

  template <class K>
  const char* start_small(const Call& call, int64_t x, int64_t elements) {
    const auto pieces = static_cast<unsigned>((elements + K::kThreads - 1) / K::kThreads);
    return launch(static_cast<unsigned>(x), pieces, 1, K::kThreads, 0, [&] { K::run(call); });
  }

  template <class Body>
  const char* launch(unsigned x, unsigned y, int ranks, int threads, size_t shared_bytes, const Body& body) {
    ++report.launches;
    if (emulator::launch({x, y}, ranks, threads, shared_bytes, body)) return nullptr;
    message() = emulator::fault();
    return message().c_str();
  }
};

template <class T, Op OP>
const char* emulate(const Call& call, int layout, const Conditions& conditions, const Tensor* tensors, int count, Report& report) {
  emulator::options = {};
  emulator::options.seed = conditions.seed;
  emulator::options.copies = static_cast<emulator::Copies>(conditions.copies);
  emulator::forget_ranges();
  for (int i = 0; i < count; ++i) emulator::announce(tensors[i].name, tensors[i].data, tensors[i].bytes, tensors[i].writable != 0);
  Launcher launcher{conditions.device, conditions, report, {}};
  return execute<T, OP>(call, static_cast<Layout>(layout), launcher);
}

}  // namespace

#define VT_PASTE3(op, type) emulate_##op##_##type
#define VT_NAME(op, type) VT_PASTE3(op, type)

extern "C" {

const char* VT_NAME(VT_OP, VT_TYPE)(const Call* call, int layout, const Conditions* conditions, const Tensor* tensors,
                                    int count, Report* report) {
  using Fp32 = float;
  return emulate<VT_TYPE, Op::VT_OP>(*call, layout, *conditions, tensors, count, *report);
}

#ifdef VT_SIZES  // in one of the objects
void sizes_of_records(int64_t* sizes) {
  sizes[0] = sizeof(Call), sizes[1] = sizeof(Conditions), sizes[2] = sizeof(Tensor), sizes[3] = sizeof(Report);
}
#endif

}  // extern "C"
