"""Random cases: a fixed sample in every run, `make fuzz` for as many as one likes (FUZZ=100000)."""
