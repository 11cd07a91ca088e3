// The rules of AXI4 that a manager must keep, checked in every cycle.

#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

constexpr uint64_t BOUNDARY = 4096;  // no burst may cross a multiple of it
constexpr uint32_t BURST_INCR = 1;
constexpr uint32_t WIDEST_BUS_BYTES = 64;

// Remembers the first violation of all.
class Violations {
  public:
    void report(uint64_t cycle, const char* channel, const std::string& what) {
        if (!first_.empty()) return;
        first_ = "cycle " + std::to_string(cycle) + ", " + channel + ": " + what;
    }
    const std::string& first() const { return first_; }
    void clear() { first_.clear(); }

  private:
    std::string first_;
};

// One channel from the manager: valid and payload must hold until the transfer.
class ChannelChecker {
  public:
    explicit ChannelChecker(const char* name) : name_{name} {}

    void reset() { waiting_ = false; }

    // `payload` is whatever must not change, `size` bytes of it.
    void check(Violations& violations, uint64_t cycle, bool valid, bool ready, const void* payload,
               size_t size) {
        if (waiting_) {
            if (!valid) {
                violations.report(cycle, name_, "valid was withdrawn before the transfer");
            } else if (std::memcmp(payload, held_.data(), size) != 0) {
                violations.report(cycle, name_, "the payload changed before the transfer");
            }
        }
        waiting_ = valid && !ready;
        if (waiting_) std::memcpy(held_.data(), payload, size);
    }

    const char* name() const { return name_; }

  private:
    const char* name_;
    bool waiting_ = false;
    std::array<uint8_t, WIDEST_BUS_BYTES + 16> held_{};
};

// What an address channel says of one burst; without padding, so that bytes can be compared.
struct BurstRequest {
    uint64_t address;
    uint32_t beats;
    uint16_t log2_size;
    uint16_t kind;
};
static_assert(sizeof(BurstRequest) == 16);

inline void check_burst(Violations& violations, uint64_t cycle, const char* channel,
                        const BurstRequest& request, uint32_t bus_bytes) {
    char text[120];
    if ((1u << request.log2_size) != bus_bytes) {
        std::snprintf(text, sizeof text, "size is %u bytes on a bus of %u", 1u << request.log2_size,
                      bus_bytes);
        violations.report(cycle, channel, text);
    }
    if (request.kind != BURST_INCR) {
        std::snprintf(text, sizeof text, "burst type is %u instead of INCR", unsigned{request.kind});
        violations.report(cycle, channel, text);
    }
    if (request.address % bus_bytes != 0) {
        std::snprintf(text, sizeof text, "address %#llx is not aligned to a beat",
                      static_cast<unsigned long long>(request.address));
        violations.report(cycle, channel, text);
    }
    const uint64_t last = request.address + uint64_t{request.beats} * bus_bytes - 1;
    if (request.address / BOUNDARY != last / BOUNDARY) {
        std::snprintf(text, sizeof text, "the burst at %#llx of %u beats crosses 4 KiB",
                      static_cast<unsigned long long>(request.address), request.beats);
        violations.report(cycle, channel, text);
    }
}
