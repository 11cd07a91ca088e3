// The machine's on-chip memories where the compiled model keeps them, for debuggers.

#pragma once

#include <cstdint>
#include <cstring>

#include "Vweft_top___024root.h"
#include "memory_table.h"  // made from the header above by compilation.py

struct MemoryView {
    const void* data;
    uint64_t rows;
    uint64_t row_bytes;  // from row to row; a row's bits come first
};

inline MemoryView find_memory(const Vweft_top___024root& root, const char* name) {
#define WEFT_MEMORY(memory, member)                                               \
    if (std::strcmp(name, memory) == 0) {                                         \
        return {&root.member[0], sizeof(root.member) / sizeof(root.member[0]),    \
                sizeof(root.member[0])};                                          \
    }
    WEFT_MEMORIES(WEFT_MEMORY)
#undef WEFT_MEMORY
    return {nullptr, 0, 0};
}
