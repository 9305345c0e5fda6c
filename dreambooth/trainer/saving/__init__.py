"""States that resume bit for bit, results under names of their own."""
