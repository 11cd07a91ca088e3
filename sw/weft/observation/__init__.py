"""Looking at runs: timelines, traces, disassembly and the report page."""
