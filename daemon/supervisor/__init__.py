"""The supervisor: owns what must outlive a child, spawns, watches and restarts; imports neither torch nor uvloop."""
