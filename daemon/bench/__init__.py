"""`tensord bench`: how fast a daemon answers, measured by its own wire client in processes of their own.

    plan.py         what is asked for, and whether that makes sense (pure)
    arrivals.py     when requests arrive in an open loop (pure)
    inputs.py       what they carry (pure)
    histogram.py    durations, counted without leaving one out (pure)
    tally.py        what one process of the load counts (pure)
    connection.py   a connection to the daemon with places for requests in flight
    load.py         the loop of one process of the load; __main__.py is its start
    processes.py    these processes, as the command sees them
    watch.py        what the daemon says of itself meanwhile, and the CPU time of its processes
    run.py          one measurement, from the first connection to the last answer
    report.py       the figures (pure)
    plot.py         their picture (pure)

What is measured, and what is not
---------------------------------
The window begins after the warm-up. A request belongs to it when it *begins* in it: in a closed loop when the answer
before it was read, in an open loop at its scheduled arrival, whether or not it could be sent then. All that begin
there are waited for, so a daemon that stalls is not spared its slowest answers (coordinated omission). Throughput
counts the answers that came within the window. On the arena lane the input is written into the slot for every
request, and that time is part of the latency; it is also shown by itself.
"""
