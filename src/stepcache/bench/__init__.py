"""`stepcache bench` and what all benchmarks share; installed as `stepcache.bench`."""
