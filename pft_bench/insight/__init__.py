"""What the numbers mean: counts of operations held against each other, crossovers, attention statistics, limits."""
