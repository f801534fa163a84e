"""Tables, verdicts and plots: pure functions of records."""
