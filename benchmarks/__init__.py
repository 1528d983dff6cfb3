"""The benchmarks: what the hop through the daemon costs, beside its limits and its best peer, in one run."""
