"""The daemon: supervisor, front end, workers, scheduling, models, knobs, control socket, command line."""
