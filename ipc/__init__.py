"""The shared language: wire protocol, errors, limits, arenas, rings, doorbells, statistics, client."""
