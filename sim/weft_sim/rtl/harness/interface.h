// What crosses the border between Python and the compiled simulator. Mirrored in library.py.

#pragma once

#include <cstdint>

constexpr uint32_t INTERFACE_VERSION = 2;

// How the memory behind the machine's AXI4 bus behaves.
struct BusOptions {
    uint32_t read_latency;     // cycles from an address handshake to its first data beat, at least 1
    uint32_t write_latency;    // cycles from the last data handshake to the response, at least 1
    uint32_t beat_interval;    // cycles a data beat, at least 1, for reads and writes separately
    uint32_t outstanding;      // bursts that each direction accepts before it stops taking addresses
    uint64_t stall_threshold;  // a channel pauses in a cycle with this probability, times 2^32
    uint64_t seed;
};

// A range of addresses that misbehaves.
struct BusErrorRange {
    uint64_t start;
    uint64_t end;  // exclusive
    uint32_t directions;
    uint32_t effect;
};

constexpr uint32_t DIRECTION_READ = 1;
constexpr uint32_t DIRECTION_WRITE = 2;
constexpr uint32_t EFFECT_ERROR = 0;  // beats inside are answered with SLVERR
constexpr uint32_t EFFECT_HANG = 1;   // a burst that touches the range is never answered

struct BusStatistics {
    uint64_t read_bursts;
    uint64_t read_beats;
    uint64_t write_bursts;
    uint64_t write_beats;
    uint64_t largest_reads_outstanding;
    uint64_t largest_writes_outstanding;
};

// One handshake on the AXI4 bus, as the recorder notes it.
struct BusEvent {
    uint64_t cycle;    // from the start of the program
    uint64_t address;  // of the burst or read beat, otherwise 0
    uint32_t kind;
    uint32_t beats;    // of the burst; 1 of a beat, 0 of a response
};

constexpr uint32_t BUS_READ_BURST = 0;
constexpr uint32_t BUS_READ_BEAT = 1;
constexpr uint32_t BUS_WRITE_BURST = 2;
constexpr uint32_t BUS_WRITE_BEAT = 3;
constexpr uint32_t BUS_WRITE_RESPONSE = 4;

// Answers of weft_run.
constexpr int RUN_INTERRUPT = 0;
constexpr int RUN_LIMIT = 1;    // the cycles given for this call have passed
constexpr int RUN_FAILURE = 2;  // see weft_failure
