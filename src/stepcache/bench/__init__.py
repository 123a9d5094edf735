"""`stepcache bench`: variants measured side by side on one grid, and the CSVs, spreads and rigs of all benchmarks."""
