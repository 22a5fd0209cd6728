// What the PTX ISA says about fragments (version 9.2, sections "Matrix Fragments for mma.m16n8k16 with
// floating point type", "Matrix Fragments for mma.m16n8k8" and "Warp-level matrix load instruction:
// ldmatrix"), in its own terms. Nothing here comes from the emulator, which is compared with it.
#pragma once

#include <cstdint>

namespace ptx {

struct Position {
  int row, col;
};

// Element a_i, b_i or c_i of a lane. Registers hold two 16-bit elements, the lower one in the lower half.

struct M16n8k16 {  // .bf16 and .f16
  static constexpr int kDepth = 16, kA = 8, kB = 4;

  static Position a(int laneid, int i) {
    const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
    const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? groupID : groupID + 8;
    const int col = i < 4 ? threadID_in_group * 2 + (i & 0x1) : threadID_in_group * 2 + (i & 0x1) + 8;
    return {row, col};
  }
  static Position b(int laneid, int i) {
    const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
    const int row = i < 2 ? threadID_in_group * 2 + (i & 0x1) : threadID_in_group * 2 + (i & 0x1) + 8;
    return {row, groupID};
  }
};

struct M16n8k8 {  // .tf32
  static constexpr int kDepth = 8, kA = 4, kB = 2;

  static Position a(int laneid, int i) {
    const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
    const int row = i == 0 || i == 2 ? groupID : groupID + 8;                      // a0 and a2; a1 and a3
    const int col = i == 0 || i == 1 ? threadID_in_group : threadID_in_group + 4;  // a0 and a1; a2 and a3
    return {row, col};
  }
  static Position b(int laneid, int i) {
    const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
    return {i == 0 ? threadID_in_group : threadID_in_group + 4, groupID};
  }
};

// Of both shapes.
inline Position c(int laneid, int i) {
  const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
  return {i < 2 ? groupID : groupID + 8, threadID_in_group * 2 + (i & 0x1)};
}

// ldmatrix .m8n8: the thread that receives each element of a matrix, whose rows are those that eight lanes
// give the addresses of: lanes 0-7 for the first matrix and register, 8-15 for the second, and so on.
constexpr int kLdmatrix[8][8] = {
    {0, 0, 1, 1, 2, 2, 3, 3},         {4, 4, 5, 5, 6, 6, 7, 7},         {8, 8, 9, 9, 10, 10, 11, 11},
    {12, 12, 13, 13, 14, 14, 15, 15}, {16, 16, 17, 17, 18, 18, 19, 19}, {20, 20, 21, 21, 22, 22, 23, 23},
    {24, 24, 25, 25, 26, 26, 27, 27}, {28, 28, 29, 29, 30, 30, 31, 31},
};
// With .trans matrices are loaded in column-major format.
constexpr int kLdmatrixTrans[8][8] = {
    {0, 4, 8, 12, 16, 20, 24, 28},  {0, 4, 8, 12, 16, 20, 24, 28},  {1, 5, 9, 13, 17, 21, 25, 29},
    {1, 5, 9, 13, 17, 21, 25, 29},  {2, 6, 10, 14, 18, 22, 26, 30}, {2, 6, 10, 14, 18, 22, 26, 30},
    {3, 7, 11, 15, 19, 23, 27, 31}, {3, 7, 11, 15, 19, 23, 27, 31},
};

}  // namespace ptx
