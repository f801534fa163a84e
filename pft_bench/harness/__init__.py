"""What proves and measures: correctness, timing, records, sweeps, comparisons, and the harness tested on itself."""
