"""Verilog of a small design in a hierarchy: a counter, and a multiplier with its register."""

__all__ = ["DESIGN"]

DESIGN = """\
module counter(clk, rst, step, count);
  input clk;
  input rst;
  input [15:0] step;
  output [15:0] count;
  reg [15:0] count;
  reg [15:0] kept;
  always @(posedge clk) begin
    kept <= step;
    if (rst) count <= 0; else count <= count + kept;
  end
endmodule
module multiplier(clk, a, product);
  input clk;
  input [7:0] a;
  output [15:0] product;
  reg [15:0] product;
  always @(posedge clk) product <= a * a;
endmodule
module top(clk, rst, step, a, count, product);
  input clk;
  input rst;
  input [15:0] step;
  input [7:0] a;
  output [15:0] count;
  output [15:0] product;
  counter left (.clk(clk), .rst(rst), .step(step), .count(count));
  multiplier right (.clk(clk), .a(a), .product(product));
endmodule
"""
