"""A worker: one process per device, the only kind that imports torch."""
