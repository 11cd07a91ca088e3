// Waveforms: VCD or FST if the model was built for it, otherwise nothing.

#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>

#include "Vweft_top.h"
#include "verilated.h"

#if VM_TRACE_FST
#include "verilated_fst_c.h"
using WaveformWriter = VerilatedFstC;
#elif VM_TRACE_VCD
#include "verilated_vcd_c.h"
using WaveformWriter = VerilatedVcdC;
#endif

#if VM_TRACE

class Waveform {
  public:
    void open(Vweft_top& top, VerilatedContext& context, const char* path, uint64_t from,
              uint64_t to) {
        from_ = from;
        to_ = to;
        context.traceEverOn(true);
        writer_ = std::make_unique<WaveformWriter>();
        top.trace(writer_.get(), 99);
        writer_->open(path);
        if (!writer_->isOpen()) throw std::runtime_error("the waveform file cannot be written");
    }

    // `time` in half cycles; `cycle` from the start of the program, which the window refers to.
    void dump(uint64_t time, uint64_t cycle) {
        if (writer_ && cycle >= from_ && cycle <= to_) writer_->dump(time);
    }

    void close() {
        if (writer_) writer_->close();
    }

  private:
    std::unique_ptr<WaveformWriter> writer_;
    uint64_t from_ = 0;
    uint64_t to_ = UINT64_MAX;
};

#else

class Waveform {
  public:
    void open(Vweft_top&, VerilatedContext&, const char*, uint64_t, uint64_t) {
        throw std::runtime_error("this simulator was built without waveforms");
    }
    void dump(uint64_t, uint64_t) {}
    void close() {}
};

#endif
