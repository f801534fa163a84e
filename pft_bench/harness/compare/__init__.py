"""Is B faster than A? Live and interleaved, between two commits, between recorded runs, and over the history."""
