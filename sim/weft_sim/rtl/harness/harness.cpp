// The compiled machine with a clock, a memory and a register bus, behind a C interface.

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "Vweft_top.h"
#include "bus_memory.h"
#include "interface.h"
#include "memories.h"
#include "verilated.h"
#include "waveform.h"

#define S_AXIL(name) top.s_axil___05F##name

// A failed assertion of the hardware must not end the process: it becomes the run's failure.
void vl_finish(const char* file, int line, const char*) {
    throw std::runtime_error(std::string{"the hardware finished at "} + file + ":" +
                             std::to_string(line));
}
void vl_stop(const char* file, int line, const char*) {
    throw std::runtime_error(std::string{"an assertion of the hardware failed at "} + file + ":" +
                             std::to_string(line));
}
void vl_fatal(const char* file, int line, const char*, const char* message) {
    throw std::runtime_error(std::string{message} + " at " + file + ":" + std::to_string(line));
}

namespace {

constexpr int QUEUES = 4;
constexpr uint64_t RESET_CYCLES = 4;
constexpr uint64_t REGISTER_LIMIT = 10000;  // cycles in which a register access must be answered

// Verilator renames the port, because some compiler once reserved the word.
template <typename T> bool interrupt_pin(const T& top) {
    if constexpr (requires { top.interrupt; }) {
        return top.interrupt;
    } else {
        return top.__SYM__interrupt;
    }
}

class Simulation {
  public:
    Simulation(uint8_t* memory, uint64_t memory_bytes, const BusOptions& options)
        : top_{std::make_unique<Top>(&context_, "")}, options_{options},
          reads_{options_, space_, violations_, statistics_, recorder_},
          writes_{options_, space_, violations_, statistics_, recorder_} {
        space_.bytes = memory;
        space_.size = memory_bytes;
    }

    ~Simulation() {
        waveform_.close();
        top_->final();
    }

    void open_waveform(const char* path, uint64_t from, uint64_t to) {
        waveform_.open(*top_, context_, path, from, to);
    }

    void set_error_ranges(const BusErrorRange* ranges, uint32_t count) {
        space_.ranges.assign(ranges, ranges + count);
    }

    void record_bus(bool enabled) { recorder_.enable(enabled); }

    void reset() {
        Top& top = *top_;
        reads_.reset(top);
        writes_.reset(top);
        S_AXIL(awvalid) = S_AXIL(wvalid) = S_AXIL(arvalid) = 0;
        S_AXIL(bready) = S_AXIL(rready) = 0;
        top.rst = 1;
        for (uint64_t i = 0; i < RESET_CYCLES; ++i) edge();
        top.rst = 0;
        violations_.clear();
    }

    void write_register(uint32_t address, uint32_t value) {
        uint64_t unused;
        write_register(address, value, unused);
    }

    // `written_at` becomes the cycle of the write as soon as that has happened.
    void write_register(uint32_t address, uint32_t value, uint64_t& written_at) {
        Top& top = *top_;
        S_AXIL(awaddr) = address;
        S_AXIL(awvalid) = 1;
        S_AXIL(wdata) = value;
        S_AXIL(wstrb) = 0xf;
        S_AXIL(wvalid) = 1;
        S_AXIL(bready) = 1;
        for (uint64_t i = 0; i < REGISTER_LIMIT; ++i) {
            step();
            // Address and data are taken each in their own cycle; the later one is the write.
            if (sampled_.awready && S_AXIL(awvalid)) S_AXIL(awvalid) = 0, written_at = cycle_ - 1;
            if (sampled_.wready && S_AXIL(wvalid)) S_AXIL(wvalid) = 0, written_at = cycle_ - 1;
            if (!sampled_.bvalid) continue;
            S_AXIL(bready) = 0;
            if (sampled_.bresp != OKAY) fail_register("write", address, "answered an error");
            return;
        }
        fail_register("write", address, "was not answered");
    }

    uint32_t read_register(uint32_t address) {
        Top& top = *top_;
        S_AXIL(araddr) = address;
        S_AXIL(arvalid) = 1;
        S_AXIL(rready) = 1;
        for (uint64_t i = 0; i < REGISTER_LIMIT; ++i) {
            step();
            if (sampled_.arready && S_AXIL(arvalid)) S_AXIL(arvalid) = 0;
            if (!sampled_.rvalid) continue;
            S_AXIL(rready) = 0;
            if (sampled_.rresp != OKAY) fail_register("read", address, "answered an error");
            return sampled_.rdata;
        }
        fail_register("read", address, "was not answered");
        return 0;
    }

    // Write the register that starts the program; cycles and events count from there.
    void start(uint32_t address, uint32_t value) {
        for (auto& events : starts_) events.clear();
        for (auto& events : retires_) events.clear();
        statistics_ = {};
        recorder_.clear();
        interrupt_at_ = 0;
        last_activity_ = cycle_;
        write_register(address, value, started_at_);
    }

    int run(uint64_t limit) {
        for (uint64_t i = 0; i < limit; ++i) {
            if (interrupt_at_ != 0 || !violations_.first().empty()) break;
            step();
        }
        if (!violations_.first().empty()) {
            failure_ = "the machine broke a rule of AXI4: " + violations_.first();
            return RUN_FAILURE;
        }
        return interrupt_at_ != 0 ? RUN_INTERRUPT : RUN_LIMIT;
    }

    void idle(uint64_t cycles) {
        for (uint64_t i = 0; i < cycles; ++i) step();
    }

    uint64_t cycle() const { return cycle_; }
    uint64_t started_at() const { return started_at_; }
    uint64_t run_cycles() const { return interrupt_at_ - started_at_; }
    uint64_t idle_cycles() const { return cycle_ - last_activity_; }
    const BusStatistics& statistics() const { return statistics_; }
    const std::vector<uint64_t>& events(int queue, bool retire) const {
        return retire ? retires_[queue] : starts_[queue];
    }

    const std::vector<BusEvent>& bus_events() const { return recorder_.events(); }
    MemoryView memory(const char* name) const { return find_memory(*top_->rootp, name); }

    std::string failure_;

  private:
    // Outputs of the register bus right before the rising edge.
    struct Sampled {
        bool awready, wready, bvalid, arready, rvalid;
        uint32_t bresp, rresp, rdata;
    };

    // Cycles since the start of the program; 0 before the first one.
    uint64_t elapsed() const { return started_at_ == 0 ? 0 : cycle_ - started_at_; }

    // One cycle: the memory's pins, settle, look at the handshakes, rising edge.
    void step() {
        Top& top = *top_;
        reads_.drive(top, cycle_);
        writes_.drive(top, cycle_);
        top.clk = 0;
        top.eval();
        waveform_.dump(2 * cycle_, elapsed());
        const bool read = reads_.sample(top, cycle_);
        const bool written = writes_.sample(top, cycle_);
        if (read || written) last_activity_ = cycle_;
        if (top.event_start | top.event_retire) log_events(top);
        if (interrupt_at_ == 0 && interrupt_pin(top)) interrupt_at_ = cycle_;
        sampled_ = {S_AXIL(awready) != 0, S_AXIL(wready) != 0,  S_AXIL(bvalid) != 0,
                    S_AXIL(arready) != 0, S_AXIL(rvalid) != 0,  S_AXIL(bresp),
                    S_AXIL(rresp),        S_AXIL(rdata)};
        rise(top);
    }

    // One cycle without looking at anything.
    void edge() {
        Top& top = *top_;
        top.clk = 0;
        top.eval();
        waveform_.dump(2 * cycle_, elapsed());
        rise(top);
    }

    void rise(Top& top) {
        top.clk = 1;
        top.eval();
        waveform_.dump(2 * cycle_ + 1, elapsed());
        ++cycle_;
    }

    void log_events(Top& top) {
        last_activity_ = cycle_;
        for (int queue = 0; queue < QUEUES; ++queue) {
            if (top.event_start >> queue & 1) starts_[queue].push_back(cycle_ - started_at_);
            if (top.event_retire >> queue & 1) retires_[queue].push_back(cycle_ - started_at_);
        }
    }

    [[noreturn]] void fail_register(const char* what, uint32_t address, const char* how) {
        throw std::runtime_error(std::string{"the "} + what + " of the register at offset " +
                                 std::to_string(address) + " " + how);
    }

    VerilatedContext context_;
    std::unique_ptr<Top> top_;
    BusOptions options_;
    AddressSpace space_;
    Violations violations_;
    BusStatistics statistics_{};
    BusRecorder recorder_{started_at_};
    ReadChannels reads_;
    WriteChannels writes_;
    Waveform waveform_;
    Sampled sampled_{};
    uint64_t cycle_ = 0;
    uint64_t started_at_ = 0;
    uint64_t interrupt_at_ = 0;
    uint64_t last_activity_ = 0;
    std::vector<uint64_t> starts_[QUEUES];
    std::vector<uint64_t> retires_[QUEUES];
};

thread_local std::string creation_failure;

// Runs `action`; an exception becomes the simulation's failure text and the answer false.
template <typename Action> bool guarded(Simulation* simulation, Action action) {
    try {
        action();
        return true;
    } catch (const std::exception& error) {
        simulation->failure_ = error.what();
        return false;
    }
}

}  // namespace

#define WEFT_EXPORT extern "C" __attribute__((visibility("default")))

WEFT_EXPORT uint32_t weft_interface_version() { return INTERFACE_VERSION; }

WEFT_EXPORT uint32_t weft_bus_bytes() { return sizeof(Vweft_top::m_axi___05Frdata); }

WEFT_EXPORT Simulation* weft_create(uint8_t* memory, uint64_t memory_bytes,
                                    const BusOptions* options) {
    try {
        return new Simulation{memory, memory_bytes, *options};
    } catch (const std::exception& error) {
        creation_failure = error.what();
        return nullptr;
    }
}

WEFT_EXPORT void weft_destroy(Simulation* simulation) { delete simulation; }

// Of the simulation, or of its creation if there is none.
WEFT_EXPORT const char* weft_failure(const Simulation* simulation) {
    return simulation == nullptr ? creation_failure.c_str() : simulation->failure_.c_str();
}

WEFT_EXPORT bool weft_open_waveform(Simulation* simulation, const char* path, uint64_t from,
                                    uint64_t to) {
    return guarded(simulation, [&] { simulation->open_waveform(path, from, to); });
}

WEFT_EXPORT void weft_set_error_ranges(Simulation* simulation, const BusErrorRange* ranges,
                                       uint32_t count) {
    simulation->set_error_ranges(ranges, count);
}

WEFT_EXPORT void weft_record_bus(Simulation* simulation, bool enabled) {
    simulation->record_bus(enabled);
}

WEFT_EXPORT bool weft_reset(Simulation* simulation) {
    return guarded(simulation, [&] { simulation->reset(); });
}

WEFT_EXPORT bool weft_write_register(Simulation* simulation, uint32_t address, uint32_t value) {
    return guarded(simulation, [&] { simulation->write_register(address, value); });
}

WEFT_EXPORT bool weft_read_register(Simulation* simulation, uint32_t address, uint32_t* value) {
    return guarded(simulation, [&] { *value = simulation->read_register(address); });
}

WEFT_EXPORT bool weft_start(Simulation* simulation, uint32_t address, uint32_t value) {
    return guarded(simulation, [&] { simulation->start(address, value); });
}

WEFT_EXPORT int weft_run(Simulation* simulation, uint64_t limit) {
    int answer = RUN_FAILURE;
    guarded(simulation, [&] { answer = simulation->run(limit); });
    return answer;
}

WEFT_EXPORT bool weft_idle(Simulation* simulation, uint64_t cycles) {
    return guarded(simulation, [&] { simulation->idle(cycles); });
}

WEFT_EXPORT uint64_t weft_cycle(const Simulation* simulation) { return simulation->cycle(); }

WEFT_EXPORT uint64_t weft_run_cycles(const Simulation* simulation) {
    return simulation->run_cycles();
}

WEFT_EXPORT uint64_t weft_idle_cycles(const Simulation* simulation) {
    return simulation->idle_cycles();
}

WEFT_EXPORT void weft_statistics(const Simulation* simulation, BusStatistics* statistics) {
    *statistics = simulation->statistics();
}

WEFT_EXPORT const uint64_t* weft_events(const Simulation* simulation, uint32_t queue,
                                        uint32_t retire, uint64_t* count) {
    const auto& events = simulation->events(static_cast<int>(queue), retire != 0);
    *count = events.size();
    return events.data();
}

WEFT_EXPORT const BusEvent* weft_bus_events(const Simulation* simulation, uint64_t* count) {
    const auto& events = simulation->bus_events();
    *count = events.size();
    return events.data();
}

WEFT_EXPORT uint64_t weft_started_at(const Simulation* simulation) {
    return simulation->started_at();
}

// Where the rows of an on-chip memory lie; null if there is none of that name.
WEFT_EXPORT const void* weft_memory(const Simulation* simulation, const char* name, uint64_t* rows,
                                    uint64_t* row_bytes) {
    const MemoryView view = simulation->memory(name);
    *rows = view.rows;
    *row_bytes = view.row_bytes;
    return view.data;
}
