// A bus master with the machine's ports that copies memory: it reads `bursts` bursts of `beats` beats
// from SOURCE, then writes them to DESTINATION. It keeps or breaks the rules of AXI4 as MISBEHAVE says,
// and lets the tests check the memory model and its rule checker by a master that they know.

`default_nettype none

module weft_top (
    input wire clk,
    input wire rst,

    input wire [11:0] s_axil__awaddr,
    input wire [2:0] s_axil__awprot,
    input wire s_axil__awvalid,
    output wire s_axil__awready,
    input wire [31:0] s_axil__wdata,
    input wire [3:0] s_axil__wstrb,
    input wire s_axil__wvalid,
    output wire s_axil__wready,
    output wire [1:0] s_axil__bresp,
    output reg s_axil__bvalid,
    input wire s_axil__bready,
    input wire [11:0] s_axil__araddr,
    input wire [2:0] s_axil__arprot,
    input wire s_axil__arvalid,
    output wire s_axil__arready,
    output reg [31:0] s_axil__rdata,
    output wire [1:0] s_axil__rresp,
    output reg s_axil__rvalid,
    input wire s_axil__rready,

    output wire m_axi__awid,
    output wire [31:0] m_axi__awaddr,
    output wire [7:0] m_axi__awlen,
    output wire [2:0] m_axi__awsize,
    output wire [1:0] m_axi__awburst,
    output wire m_axi__awlock,
    output wire [3:0] m_axi__awcache,
    output wire [2:0] m_axi__awprot,
    output wire m_axi__awvalid,
    input wire m_axi__awready,
    output wire [63:0] m_axi__wdata,
    output wire [7:0] m_axi__wstrb,
    output wire m_axi__wlast,
    output wire m_axi__wvalid,
    input wire m_axi__wready,
    input wire m_axi__bid,
    input wire [1:0] m_axi__bresp,
    input wire m_axi__bvalid,
    output wire m_axi__bready,
    output wire m_axi__arid,
    output wire [31:0] m_axi__araddr,
    output wire [7:0] m_axi__arlen,
    output wire [2:0] m_axi__arsize,
    output wire [1:0] m_axi__arburst,
    output wire m_axi__arlock,
    output wire [3:0] m_axi__arcache,
    output wire [2:0] m_axi__arprot,
    output wire m_axi__arvalid,
    input wire m_axi__arready,
    input wire m_axi__rid,
    input wire [63:0] m_axi__rdata,
    input wire [1:0] m_axi__rresp,
    input wire m_axi__rlast,
    input wire m_axi__rvalid,
    output wire m_axi__rready,

    output wire interrupt,
    output reg [3:0] event_start,
    output reg [3:0] event_retire
);
    // Registers: 0x00 control (bit 0 starts), 0x04 source, 0x08 destination, 0x0c bursts, 0x10 beats,
    // 0x14 misbehave, 0x18 worst response (read only), 0x1c bad position of rlast (read only).
    localparam WITHDRAW_READ = 1, CHANGE_DATA = 2, EARLY_LAST = 3, HALF_SIZE = 4, FIXED_BURST = 5,
               NO_LAST = 6, ASSERTION = 7, CHANGE_ADDRESS = 8;
    localparam IDLE = 0, READING = 1, WRITING = 2, DONE = 3;

    reg [31:0] source, destination, bursts, beats, misbehave;
    reg [1:0] worst;
    reg bad_last;
    reg [1:0] state;

    // The register bus: address and data taken together, one access at a time.
    wire write = s_axil__awvalid && s_axil__wvalid && !s_axil__bvalid;
    wire start = write && s_axil__awaddr == 0 && s_axil__wdata[0];
    assign s_axil__awready = write;
    assign s_axil__wready = write;
    assign s_axil__bresp = s_axil__awaddr[11:8] != 0 ? 2 : 0;
    assign s_axil__arready = !s_axil__rvalid;
    assign s_axil__rresp = 0;
    always @(posedge clk) begin
        if (write) begin
            s_axil__bvalid <= 1;
            case (s_axil__awaddr)
                12'h04: source <= s_axil__wdata;
                12'h08: destination <= s_axil__wdata;
                12'h0c: bursts <= s_axil__wdata;
                12'h10: beats <= s_axil__wdata;
                12'h14: misbehave <= s_axil__wdata;
                default: ;
            endcase
        end else if (s_axil__bready) s_axil__bvalid <= 0;
        if (s_axil__arvalid && s_axil__arready) begin
            s_axil__rvalid <= 1;
            case (s_axil__araddr)
                12'h04: s_axil__rdata <= source;
                12'h18: s_axil__rdata <= worst;
                12'h1c: s_axil__rdata <= bad_last;
                default: s_axil__rdata <= 32'hdeadbeef;
            endcase
        end else if (s_axil__rready) s_axil__rvalid <= 0;
        if (rst) begin
            s_axil__bvalid <= 0;
            s_axil__rvalid <= 0;
        end
    end

    reg [63:0] buffer [0:4095];
    reg [31:0] asked, taken, taken_in_burst, announced, sent, sent_in_burst, answered;
    reg toggle;
    wire [31:0] total = bursts * beats;
    wire [2:0] size = misbehave == HALF_SIZE ? 2 : 3;
    wire [1:0] kind = misbehave == FIXED_BURST ? 0 : 1;

    assign m_axi__arid = 0;
    assign m_axi__arvalid = state == READING && asked < bursts
                            && !(misbehave == WITHDRAW_READ && toggle);
    assign m_axi__araddr = source + asked * beats * 8 + (misbehave == CHANGE_ADDRESS && toggle ? 8 : 0);
    assign m_axi__arlen = beats - 1;
    assign m_axi__arsize = size;
    assign m_axi__arburst = kind;
    assign m_axi__arlock = 0;
    assign m_axi__arcache = 0;
    assign m_axi__arprot = 0;
    assign m_axi__rready = 1;

    assign m_axi__awid = 0;
    assign m_axi__awvalid = state == WRITING && announced < bursts;
    assign m_axi__awaddr = destination + announced * beats * 8;
    assign m_axi__awlen = beats - 1;
    assign m_axi__awsize = size;
    assign m_axi__awburst = kind;
    assign m_axi__awlock = 0;
    assign m_axi__awcache = 0;
    assign m_axi__awprot = 0;
    assign m_axi__wvalid = state == WRITING && sent < total;
    assign m_axi__wdata = buffer[sent[11:0]] + (misbehave == CHANGE_DATA ? toggle : 0);
    assign m_axi__wstrb = sent == 0 ? 8'hfe : 8'hff;  // the very first byte is not written
    assign m_axi__wlast = misbehave == EARLY_LAST ? sent_in_burst == 0
                        : misbehave == NO_LAST ? 0 : sent_in_burst == beats - 1;
    assign m_axi__bready = 1;
    assign interrupt = state == DONE;

    always @(posedge clk) begin
        toggle <= !toggle;
        event_start <= 0;
        event_retire <= 0;
        if (start) begin
            {asked, taken, taken_in_burst, announced, sent, sent_in_burst, answered} <= 0;
            worst <= 0;
            bad_last <= 0;
            state <= READING;
            event_start <= 4'b0001;
        end
        if (m_axi__arvalid && m_axi__arready) asked <= asked + 1;
        if (m_axi__rvalid) begin
            buffer[taken[11:0]] <= m_axi__rdata;
            taken <= taken + 1;
            taken_in_burst <= taken_in_burst == beats - 1 ? 0 : taken_in_burst + 1;
            if (m_axi__rlast != (taken_in_burst == beats - 1)) bad_last <= 1;
            if (m_axi__rresp > worst) worst <= m_axi__rresp;
            if (taken == total - 1) begin
                state <= WRITING;
                event_retire <= 4'b0001;
                event_start <= 4'b1000;
            end
        end
        if (m_axi__awvalid && m_axi__awready) announced <= announced + 1;
        if (m_axi__wvalid && m_axi__wready) begin
            sent <= sent + 1;
            sent_in_burst <= sent_in_burst == beats - 1 ? 0 : sent_in_burst + 1;
        end
        if (m_axi__bvalid) begin
            answered <= answered + 1;
            if (m_axi__bresp > worst) worst <= m_axi__bresp;
            if (answered == bursts - 1) begin
                state <= DONE;
                event_retire <= 4'b1000;
            end
        end
        if (rst) begin
            state <= IDLE;
            toggle <= 0;
        end
    end

    always @(posedge clk) if (state == READING) assert (misbehave != ASSERTION);
endmodule
