// Shared and global memory, and asynchronous copies: every access is checked for bounds, alignment and races.
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "machine.h"

namespace emulator {

// ---- races ----

// The smallest scope that has both the thread of an access and the running one; 0 if they are the same.
inline uint8_t common_scope(const Access& access) {
  const Access& here = machine.here;
  if (access.block == here.block && access.lane <= kWarps) {
    if (access.warp != here.warp || access.lane == kWarps) return kWarps;
    return access.lane == here.lane ? 0 : kLanes;
  }
  const int rank = access.block - machine.first_block;
  return rank >= 0 && rank < machine.cluster && access.lane <= kBlocks ? kBlocks : kClusters;
}

// Whether an access is ordered before what the running thread does now. Accesses older than `since` are of
// another launch, or were made when another cluster had the memory.
inline bool ordered(const Access& access, uint32_t since) {
  if (access.stamp < since) return true;
  const uint8_t scope = common_scope(access);
  if (scope == kLanes) return access.stamp < machine.warp->synced;
  if (scope == kWarps) return access.stamp < machine.block->synced;
  if (scope == kBlocks) return access.stamp < machine.cluster_synced;
  return scope == 0;
}

[[noreturn]] inline void fail_race(const char* verb, const Shadow& shadow, const Granule& granule,
                                   const Access& other, const char* other_verb) {
  const std::string byte = std::to_string(2 * (&granule - shadow.granules.data()));
  const std::string place = "race: " + std::string(verb) + " byte " + byte + " of " + shadow.name;
  if (other.lane == kCopy) fail(place + " under a copy that was not waited for");
  const auto one_or = [](bool several, const char* kind, int index) {
    return several ? "several " + std::string(kind) + "s" : kind + (" " + std::to_string(index));
  };
  const std::string which = place + ", which ";
  switch (common_scope(other)) {
    case kLanes:
      fail(which + one_or(other.lane == kLanes, "lane", other.lane) + other_verb +
           " with no sync_warp since");
    case kWarps:
      fail(which + one_or(other.lane == kWarps, "warp", other.warp) + other_verb +
           " with no sync_block since");
    case kBlocks:
      fail(which + one_or(other.lane == kBlocks, "block", other.block) + other_verb +
           " with no sync_cluster since");
    default:
      fail(which + one_or(other.lane == kClusters, "block", other.block) + other_verb +
           " in the same launch");
  }
}

// Calls note(granule) for all granules of an access.
template <class Note>
void for_granules(Shadow& shadow, uint64_t at, int bytes, const Note& note) {
  Granule* const end = shadow.granules.data() + (at + bytes + 1) / 2;
  for (Granule* granule = shadow.granules.data() + at / 2; granule != end; ++granule) note(*granule);
}

inline void note_read(Shadow& shadow, uint64_t at, int bytes, uint32_t since) {
  for_granules(shadow, at, bytes, [&](Granule& granule) {
    if (!ordered(granule.write, since)) fail_race("reads", shadow, granule, granule.write, " wrote");
    // If an earlier read is not ordered before this one, both count. To be ordered after both takes a
    // synchronization of the scope that has both, so that it is enough to keep that scope.
    const uint8_t lane = ordered(granule.read, since) ? machine.here.lane : common_scope(granule.read);
    granule.read = machine.here;
    granule.read.lane = lane;
  });
}

inline void note_write(Shadow& shadow, uint64_t at, int bytes, uint32_t since, bool copy = false) {
  Access write = machine.here;
  if (copy) write.lane = kCopy;
  for_granules(shadow, at, bytes, [&](Granule& granule) {
    if (!ordered(granule.write, since)) fail_race("writes", shadow, granule, granule.write, " wrote");
    if (!ordered(granule.read, since)) fail_race("writes", shadow, granule, granule.read, " read");
    granule = {write, {}};
  });
}

// ---- shared memory ----

inline void check_shared(uint32_t at, int bytes) {
  if (at % bytes != 0) {
    fail("shared memory: byte " + std::to_string(at) + " is not aligned to " + std::to_string(bytes) +
         " bytes");
  }
  if (static_cast<uint64_t>(at) + bytes > machine.shared_bytes) {
    fail("shared memory: byte " + std::to_string(at) + " is out of bounds, the block has " +
         std::to_string(machine.shared_bytes));
  }
}

template <class T>
T read_memory_of(Block& owner, uint32_t at) {
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  check_shared(at, sizeof(T));
  note_read(owner.shadow, at, sizeof(T), machine.cluster_start);
  T value;
  std::memcpy(&value, owner.memory.data() + at, sizeof(T));
  return value;
}

template <class T>
T read_shared(uint32_t at) {
  return read_memory_of<T>(*machine.block, at);
}

template <class T>
void write_shared(uint32_t at, T value) {
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  check_shared(at, sizeof(T));
  note_write(machine.block->shadow, at, sizeof(T), machine.cluster_start);
  std::memcpy(machine.block->memory.data() + at, &value, sizeof(T));
}

// The memory of another block of the cluster.
template <class T>
T read_shared_of(int rank, uint32_t at) {
  if (rank < 0 || rank >= machine.cluster)
    fail("no block of rank " + std::to_string(rank) + " in the cluster");
  Block& owner = machine.blocks[rank];
  if (&owner != machine.block) {
    const std::string block = "block " + std::to_string(machine.first_block + rank);
    if (owner.running == 0) fail("reads shared memory of " + block + ", which has ended");
    if (machine.cluster_synced == machine.cluster_start) {
      fail("reads shared memory of " + block + " before a sync_cluster: it may not run yet");
    }
    owner.remote_read = machine.here.stamp;
  }
  return read_memory_of<T>(owner, at);
}

// ---- global memory ----

// Lets kernels use memory. The reference is valid until `forget`. Operands that are the same memory share a
// range.
inline Range& announce(const std::string& name, const void* data, uint64_t bytes, bool writable) {
  const char* begin = static_cast<const char*>(data);
  for (Range& range : machine.ranges) {
    if (begin >= range.end || begin + bytes <= range.begin) continue;
    if (begin == range.begin && bytes == range.bytes() && !writable && !range.writable) return range;
    throw std::logic_error("`" + name + "` and " + range.shadow.name + " overlap");
  }
  machine.ranges.emplace_back();
  Range& range = machine.ranges.back();
  range.begin = begin, range.end = begin + bytes, range.writable = writable;
  range.shadow.name = "`" + name + "`";
  if (writable) {
    range.covered.resize(bytes);
    range.shadow.granules.resize(bytes / 2 + 1);
  }
  return range;
}

inline void forget() {
  machine.ranges.clear();
  machine.last_range = nullptr;
}

[[noreturn]] inline void fail_global(const char* verb, const char* at, int bytes) {
  std::string where = "no global memory was announced";
  int64_t least = INT64_MAX;
  for (const Range& range : machine.ranges) {
    const int64_t after = at + bytes - range.end, before = range.begin - at;
    const int64_t distance = std::max(after, before);
    if (range.bytes() == 0 || distance >= least) continue;
    least = distance;
    where = std::to_string(distance) +
            (after > before ? " bytes past the end of " : " bytes before the start of ") + range.shadow.name;
  }
  fail("global memory: " + std::string(verb) + " " + std::to_string(bytes) + " bytes out of bounds, " +
       where);
}

inline Range& find_range(const char* verb, const char* at, int bytes) {
  const auto inside = [&](const Range& range) { return at >= range.begin && at + bytes <= range.end; };
  if (machine.last_range != nullptr && inside(*machine.last_range)) return *machine.last_range;
  for (Range& range : machine.ranges) {
    if (inside(range)) {
      machine.last_range = &range;
      return range;
    }
  }
  fail_global(verb, at, bytes);
}

inline void check_aligned(const void* at, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    fail("global memory: an address is not aligned to " + std::to_string(bytes) + " bytes");
  }
}

template <class T>
T read_global(const void* at) {
  constexpr int kBytes = sizeof(T);
  static_assert(kBytes <= 16 && (kBytes & (kBytes - 1)) == 0);
  const char* from = static_cast<const char*>(at);
  check_aligned(at, kBytes);
  Range& range = find_range("reads", from, kBytes);
  if (range.writable) note_read(range.shadow, from - range.begin, kBytes, machine.launch_start);
  range.bytes_read += kBytes;
  machine.report.counters.bytes_read += kBytes;
  T value;
  std::memcpy(&value, at, kBytes);
  return value;
}

template <class T>
void write_global(void* at, T value) {
  constexpr int kBytes = sizeof(T);
  static_assert(kBytes <= 16 && (kBytes & (kBytes - 1)) == 0);
  char* to = static_cast<char*>(at);
  check_aligned(at, kBytes);
  Range& range = find_range("writes", to, kBytes);
  const uint64_t offset = to - range.begin;
  if (!range.writable)
    fail("writes byte " + std::to_string(offset) + " of " + range.shadow.name + ", which is read-only");
  note_write(range.shadow, offset, kBytes, machine.launch_start);
  for (uint64_t byte = offset; byte < offset + kBytes; ++byte) {
    if (!range.covered[byte]) range.covered[byte] = true, ++range.bytes_covered;
  }
  range.bytes_written += kBytes;
  machine.report.counters.bytes_written += kBytes;
  std::memcpy(to, &value, kBytes);
}

// ---- asynchronous copies ----

inline void move(Copy& copy) {
  char* to = machine.block->memory.data() + copy.to;
  std::memcpy(to, copy.from, copy.filled);
  std::memset(to + copy.filled, 0, copy.bytes - copy.filled);
  copy.moved = true;
}

inline void copy_async(uint32_t to, const void* from, int bytes, int filled) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("a copy of " + std::to_string(bytes) + " bytes");
  if (filled < 0 || filled > bytes)
    fail("a copy fills " + std::to_string(filled) + " of " + std::to_string(bytes) + " bytes");
  check_shared(to, bytes);
  check_aligned(from, bytes);
  if (filled != 0) {
    Range& range = find_range("copies", static_cast<const char*>(from), filled);
    if (range.writable) {
      note_read(range.shadow, static_cast<const char*>(from) - range.begin, filled, machine.launch_start);
    }
    range.bytes_copied += filled;
    machine.report.counters.bytes_copied += filled;
  }
  note_write(machine.block->shadow, to, bytes, machine.cluster_start, true);
  Copy copy{to, from, bytes, filled, false};
  const Copies when = machine.options.copies;
  if (when == Copies::early || (when == Copies::random && draw(2) != 0)) move(copy);
  machine.lane().copies.push_back(copy);
  ++machine.lane().uncommitted;
}

inline void copy_commit() {
  Lane& lane = machine.lane();
  lane.groups.push_back(lane.uncommitted);
  lane.uncommitted = 0;
}

// From here on the thread may use what its copies wrote: they count as its own writes of this moment.
inline void copy_wait(int pending) {
  Lane& lane = machine.lane();
  uint32_t landed = 0;
  size_t group = 0;
  for (; group + pending < lane.groups.size(); ++group) landed += lane.groups[group];
  for (uint32_t i = 0; i < landed; ++i) {
    Copy& copy = lane.copies[i];
    if (!copy.moved) move(copy);
    Granule* granules = machine.block->shadow.granules.data();
    for (uint32_t at = copy.to / 2; at < (copy.to + copy.bytes) / 2; ++at) granules[at].write = machine.here;
  }
  lane.copies.erase(lane.copies.begin(), lane.copies.begin() + landed);
  lane.groups.erase(lane.groups.begin(), lane.groups.begin() + static_cast<ptrdiff_t>(group));
}

}  // namespace emulator
