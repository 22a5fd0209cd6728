// The CUDA kernels of one op and dtype (VT_OP, VT_TYPE), on the emulator.
#include "launch.h"

// Whether there is a kernel for 16 `mt` channels of a warp and 8 `nt` rows.
#define VT_EXISTS_OF(op, type) exists_##op##_##type
#define VT_EXISTS(op, type) VT_EXISTS_OF(op, type)
extern "C" __attribute__((visibility("default"))) int VT_EXISTS(VT_OP, VT_TYPE)(int mt, int nt);

#ifdef VT_ABSENT  // left out of a build for few kernels

#define VT_NAME_OF(op, type) run_##op##_##type
#define VT_NAME(op, type) VT_NAME_OF(op, type)

namespace vt {
namespace cuda {
const char* VT_NAME(VT_OP, VT_TYPE)(const Call&, Layout, const Host&) { return "this kernel is not built"; }
}  // namespace cuda
}  // namespace vt

int VT_EXISTS(VT_OP, VT_TYPE)(int, int) { return 0; }

#else

#include "kernels.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "emulated.h"
#include "far_memory.h"
#include "ranges.h"

namespace vt {
namespace cuda {
namespace {

struct EmulatedLauncher {
  const Host& host;
  const Device device = host.device;

  EmulatedLauncher(const Host& host, const Ranges* ranges) : host(host), ranges_(ranges) {}

  template <class K>
  const char* clusters(const Plan& plan, int& count) {
    count = emulated::conditions.clusters;
    emulated::report = {};
    emulated::report.warps = plan.warps, emulated::report.ranks = plan.ranks,
    emulated::report.stages = plan.stages;
    emulated::report.mt = K::MT, emulated::report.nt = K::NT, emulated::report.tp = K::TP;
    emulated::report.shared_bytes = static_cast<int32_t>(plan.places.bytes);
    return emulated::conditions.dry ? emulated::only_planned : nullptr;
  }

  const char* floats(int64_t count, float*& workspace) {
    workspace_.assign(count, std::numeric_limits<float>::quiet_NaN());
    workspace = workspace_.data();
    emulator::announce("workspace", workspace, 4 * count, true);
    return nullptr;
  }

  template <class K>
  const char* start(const Call& call, const Plan& plan) {
    emulated::report.clusters = call.clusters, emulated::report.unit = call.unit;
    return launch<K>(call, call.clusters * plan.ranks, 1, plan.ranks, 32 * plan.warps, plan.places.bytes);
  }

  template <class K>
  const char* start_small(const Call& call, int64_t x, int64_t elements) {
    const auto pieces = static_cast<unsigned>((elements + K::kThreads - 1) / K::kThreads);
    return launch<K>(call, static_cast<unsigned>(x), pieces, 1, K::kThreads, 0);
  }

  const char* finish() {
    emulated::message = ranges_->finish(emulated::report.tp);
    return emulated::message.empty() ? nullptr : emulated::message.c_str();
  }

 private:
  template <class K>
  const char* launch(const Call& call, unsigned x, unsigned y, int ranks, int threads,
                     uint32_t shared_bytes) {
    ++emulated::report.launches;
    const emulator::Options options = {emulated::conditions.seed,
                                       static_cast<emulator::Copies>(emulated::conditions.copies)};
    const emulator::Grid grid = {static_cast<int>(x), static_cast<int>(y)};
    const emulator::Report found =
        emulator::launch(grid, ranks, threads, shared_bytes, options, [&call] { K::run(call); });
    emulated::message = found.fault;
    if (found.counters.ldmatrix_passes != found.counters.ldmatrix_reads)
      emulated::message += "ldmatrix reads rows in the same banks";
    return emulated::message.empty() ? nullptr : emulated::message.c_str();
  }

  const Ranges* ranges_;
  std::vector<float> workspace_;
};

}  // namespace

const char* VT_NAME(VT_OP, VT_TYPE)(const Call& call, Layout layout, const Host& host) {
  using T = VT_TYPE;
  if (emulated::conditions.dry) {
    EmulatedLauncher launcher(host, nullptr);
    return execute<T, Op::VT_OP>(call, layout, launcher);
  }
  Call moved = call;
  std::unique_ptr<FarMemory> far;
  if (emulated::conditions.far) far = std::make_unique<FarMemory>(moved, layout, sizeof(T));
  const Ranges ranges(moved, layout, sizeof(T));
  EmulatedLauncher launcher(host, &ranges);
  const char* error = execute<T, Op::VT_OP>(moved, layout, launcher);
  if (error == nullptr) error = launcher.finish();
  if (error == nullptr && far != nullptr) far->bring_back();
  return error;
}

static int exists_kernel(int mt, int nt) { return exists<VT_TYPE>(Op::VT_OP, mt, nt); }

}  // namespace cuda
}  // namespace vt

int VT_EXISTS(VT_OP, VT_TYPE)(int mt, int nt) { return vt::cuda::exists_kernel(mt, nt); }

#endif
