// A memory behind the machine's AXI4 manager port: latency, bandwidth, random stalls, errors.
//
// Each direction answers its bursts in order. `drive` sets the memory's pins from state alone;
// `sample` looks at the handshakes right before the rising edge. Both are called once a cycle.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "Vweft_top.h"
#include "bus_checker.h"
#include "interface.h"

// Verilator writes a double underscore inside a name as ___05F.
#define M_AXI(name) top.m_axi___05F##name

using Top = Vweft_top;

template <typename T> constexpr uint32_t byte_size(const T&) { return sizeof(T); }

enum Response : uint32_t { OKAY = 0, SLVERR = 2, DECERR = 3 };

// The bytes that the machine sees at address 0 and up, and the ranges that misbehave.
struct AddressSpace {
    uint8_t* bytes = nullptr;
    uint64_t size = 0;
    std::vector<BusErrorRange> ranges;

    Response response(uint64_t address, uint32_t length, uint32_t direction) const {
        if (address > size || length > size - address) return DECERR;
        return touches(address, length, direction, EFFECT_ERROR) ? SLVERR : OKAY;
    }

    bool touches(uint64_t address, uint64_t length, uint32_t direction, uint32_t effect) const {
        return std::any_of(ranges.begin(), ranges.end(), [&](const BusErrorRange& range) {
            return range.effect == effect && (range.directions & direction) != 0 &&
                   address < range.end && address + length > range.start;
        });
    }
};

// Decides, by seed, in which cycles a channel pauses (xorshift64*).
class Stalls {
  public:
    Stalls(uint64_t threshold, uint64_t seed)
        : threshold_{threshold}, state_{seed * 0x9e3779b97f4a7c15u + 0x1234567887654321u} {
        if (state_ == 0) state_ = 1;
    }

    bool operator()() {
        if (threshold_ == 0) return false;
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return (state_ * 0x2545f4914f6cdd1du) >> 32 < threshold_;
    }

  private:
    uint64_t threshold_;
    uint64_t state_;
};

// Notes handshakes while it is switched on; cycles count from `origin`.
class BusRecorder {
  public:
    explicit BusRecorder(const uint64_t& origin) : origin_{origin} {}

    void enable(bool enabled) { enabled_ = enabled; }
    void clear() { events_.clear(); }
    const std::vector<BusEvent>& events() const { return events_; }

    void note(uint64_t cycle, uint32_t kind, uint64_t address, uint32_t beats) {
        if (enabled_) events_.push_back({cycle - origin_, address, kind, beats});
    }

  private:
    const uint64_t& origin_;
    bool enabled_ = false;
    std::vector<BusEvent> events_;
};

struct Burst {
    uint64_t address;     // of the next beat
    uint32_t beats_left;
    uint64_t ready_at;    // cycle in which its answer may begin
    bool hangs;
    Response worst = OKAY;
};

class ReadChannels {
  public:
    ReadChannels(const BusOptions& options, AddressSpace& space, Violations& violations,
                 BusStatistics& statistics, BusRecorder& recorder)
        : options_{options}, space_{space}, violations_{violations}, statistics_{statistics},
          recorder_{recorder}, stalls_{options.stall_threshold, options.seed * 2} {}

    void reset(Top& top) {
        bursts_.clear();
        presenting_ = false;
        checker_.reset();
        M_AXI(rvalid) = 0;
        M_AXI(arready) = 0;
    }

    void drive(Top& top, uint64_t cycle) {
        if (!presenting_ && !bursts_.empty()) {
            const Burst& head = bursts_.front();
            if (!head.hangs && cycle >= head.ready_at && cycle >= next_beat_ && !stalls_()) {
                present(top, head);
            }
        }
        M_AXI(rvalid) = presenting_;
        M_AXI(arready) = bursts_.size() < options_.outstanding && !stalls_();
    }

    // Whether anything was transferred.
    bool sample(Top& top, uint64_t cycle) {
        bool moved = false;
        const BurstRequest request{M_AXI(araddr), M_AXI(arlen) + 1u, M_AXI(arsize), M_AXI(arburst)};
        checker_.check(violations_, cycle, M_AXI(arvalid), M_AXI(arready), &request, sizeof request);
        if (presenting_ && M_AXI(rready)) {
            moved = true;
            accept_beat(cycle);
        }
        if (M_AXI(arvalid) && M_AXI(arready)) {
            moved = true;
            accept_burst(top, cycle, request);
        }
        return moved;
    }

  private:
    void present(Top& top, const Burst& head) {
        const uint32_t bus_bytes = byte_size(M_AXI(rdata));
        const Response response = space_.response(head.address, bus_bytes, DIRECTION_READ);
        if (response == DECERR) {
            std::memset(&M_AXI(rdata), 0, bus_bytes);
        } else {
            std::memcpy(&M_AXI(rdata), space_.bytes + head.address, bus_bytes);
        }
        M_AXI(rresp) = response;
        M_AXI(rlast) = head.beats_left == 1;
        presenting_ = true;
    }

    void accept_beat(uint64_t cycle) {
        ++statistics_.read_beats;
        presenting_ = false;
        next_beat_ = cycle + options_.beat_interval;
        Burst& head = bursts_.front();
        recorder_.note(cycle, BUS_READ_BEAT, head.address, 1);
        head.address += beat_bytes_;
        if (--head.beats_left == 0) bursts_.pop_front();
    }

    void accept_burst(Top& top, uint64_t cycle, const BurstRequest& request) {
        beat_bytes_ = byte_size(M_AXI(rdata));
        check_burst(violations_, cycle, checker_.name(), request, beat_bytes_);
        const uint64_t length = uint64_t{request.beats} * beat_bytes_;
        bursts_.push_back({request.address, request.beats, cycle + options_.read_latency,
                           space_.touches(request.address, length, DIRECTION_READ, EFFECT_HANG)});
        ++statistics_.read_bursts;
        recorder_.note(cycle, BUS_READ_BURST, request.address, request.beats);
        statistics_.largest_reads_outstanding =
            std::max<uint64_t>(statistics_.largest_reads_outstanding, bursts_.size());
    }

    const BusOptions& options_;
    AddressSpace& space_;
    Violations& violations_;
    BusStatistics& statistics_;
    BusRecorder& recorder_;
    Stalls stalls_;
    ChannelChecker checker_{"AR"};
    std::deque<Burst> bursts_;
    bool presenting_ = false;
    uint64_t next_beat_ = 0;
    uint32_t beat_bytes_ = 0;
};

class WriteChannels {
  public:
    WriteChannels(const BusOptions& options, AddressSpace& space, Violations& violations,
                  BusStatistics& statistics, BusRecorder& recorder)
        : options_{options}, space_{space}, violations_{violations}, statistics_{statistics},
          recorder_{recorder}, stalls_{options.stall_threshold, options.seed * 2 + 1} {}

    void reset(Top& top) {
        bursts_.clear();
        answers_.clear();
        early_.clear();
        presenting_ = false;
        address_checker_.reset();
        data_checker_.reset();
        M_AXI(bvalid) = 0;
        M_AXI(awready) = 0;
        M_AXI(wready) = 0;
    }

    void drive(Top& top, uint64_t cycle) {
        if (!presenting_ && !answers_.empty()) {
            const Burst& head = answers_.front();
            if (!head.hangs && cycle >= head.ready_at && !stalls_()) {
                M_AXI(bresp) = head.worst;
                presenting_ = true;
            }
        }
        M_AXI(bvalid) = presenting_;
        M_AXI(awready) = outstanding() < options_.outstanding && !stalls_();
        // Data may come before their address, up to a limit.
        M_AXI(wready) = early_.size() < EARLY_BEATS && cycle >= next_beat_ && !stalls_();
    }

    // Whether anything was transferred.
    bool sample(Top& top, uint64_t cycle) {
        bool moved = false;
        check_stability(top, cycle);
        if (presenting_ && M_AXI(bready)) {
            moved = true;
            presenting_ = false;
            answers_.pop_front();
            recorder_.note(cycle, BUS_WRITE_RESPONSE, 0, 0);
        }
        if (M_AXI(awvalid) && M_AXI(awready)) {
            moved = true;
            accept_burst(top, cycle);
        }
        if (M_AXI(wvalid) && M_AXI(wready)) {
            moved = true;
            accept_beat(top, cycle);
        }
        while (!early_.empty() && !bursts_.empty()) {
            write_beat(cycle, early_.front());
            early_.pop_front();
        }
        return moved;
    }

  private:
    static constexpr size_t EARLY_BEATS = 16;

    struct Beat {
        uint8_t data[WIDEST_BUS_BYTES];
        uint64_t strobe;
        bool last;
    };

    size_t outstanding() const { return bursts_.size() + answers_.size(); }

    void check_stability(Top& top, uint64_t cycle) {
        const BurstRequest request{M_AXI(awaddr), M_AXI(awlen) + 1u, M_AXI(awsize), M_AXI(awburst)};
        address_checker_.check(violations_, cycle, M_AXI(awvalid), M_AXI(awready), &request,
                               sizeof request);
        const bool valid = M_AXI(wvalid);
        if (!valid) {
            data_checker_.check(violations_, cycle, false, false, nullptr, 0);
            return;
        }
        uint8_t payload[WIDEST_BUS_BYTES + 9];
        const uint32_t bus_bytes = byte_size(M_AXI(wdata));
        const uint64_t strobe = M_AXI(wstrb);
        std::memcpy(payload, &M_AXI(wdata), bus_bytes);
        std::memcpy(payload + bus_bytes, &strobe, 8);
        payload[bus_bytes + 8] = M_AXI(wlast);
        data_checker_.check(violations_, cycle, true, M_AXI(wready), payload, bus_bytes + 9);
    }

    void accept_burst(Top& top, uint64_t cycle) {
        const BurstRequest request{M_AXI(awaddr), M_AXI(awlen) + 1u, M_AXI(awsize), M_AXI(awburst)};
        beat_bytes_ = byte_size(M_AXI(wdata));
        check_burst(violations_, cycle, address_checker_.name(), request, beat_bytes_);
        const uint64_t length = uint64_t{request.beats} * beat_bytes_;
        bursts_.push_back({request.address, request.beats, 0,
                           space_.touches(request.address, length, DIRECTION_WRITE, EFFECT_HANG)});
        ++statistics_.write_bursts;
        recorder_.note(cycle, BUS_WRITE_BURST, request.address, request.beats);
        statistics_.largest_writes_outstanding =
            std::max<uint64_t>(statistics_.largest_writes_outstanding, outstanding());
    }

    void accept_beat(Top& top, uint64_t cycle) {
        Beat beat;
        std::memcpy(beat.data, &M_AXI(wdata), byte_size(M_AXI(wdata)));
        beat.strobe = M_AXI(wstrb);
        beat.last = M_AXI(wlast);
        next_beat_ = cycle + options_.beat_interval;
        ++statistics_.write_beats;
        recorder_.note(cycle, BUS_WRITE_BEAT, 0, 1);
        early_.push_back(beat);
    }

    void write_beat(uint64_t cycle, const Beat& beat) {
        Burst& burst = bursts_.front();
        if (beat.last != (burst.beats_left == 1)) {
            violations_.report(cycle, data_checker_.name(),
                               beat.last ? "last is set before the burst's last beat"
                                         : "last is missing on the burst's last beat");
        }
        const Response response = space_.response(burst.address, beat_bytes_, DIRECTION_WRITE);
        burst.worst = std::max(burst.worst, response);
        if (response == OKAY && !burst.hangs) {
            for (uint32_t i = 0; i < beat_bytes_; ++i) {
                if (beat.strobe >> i & 1) space_.bytes[burst.address + i] = beat.data[i];
            }
        }
        burst.address += beat_bytes_;
        if (--burst.beats_left == 0) {
            burst.ready_at = cycle + options_.write_latency;
            answers_.push_back(burst);
            bursts_.pop_front();
        }
    }

    const BusOptions& options_;
    AddressSpace& space_;
    Violations& violations_;
    BusStatistics& statistics_;
    BusRecorder& recorder_;
    Stalls stalls_;
    ChannelChecker address_checker_{"AW"};
    ChannelChecker data_checker_{"W"};
    std::deque<Burst> bursts_;   // whose data are not complete
    std::deque<Burst> answers_;  // whose response is due
    std::deque<Beat> early_;
    bool presenting_ = false;
    uint64_t next_beat_ = 0;
    uint32_t beat_bytes_ = 0;
};
