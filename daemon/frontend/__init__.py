"""The front end: one uvloop process that owns all client connections and drives the scheduler."""
