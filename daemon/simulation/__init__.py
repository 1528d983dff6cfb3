"""The scheduling core in virtual time: what would these settings do under that load? (pure)

    scenario.py     what to simulate: models, devices, workloads, settings to compare
    scenario_file.py, scenario_tables.py    the same as TOML
    trace.py        a recorded load: writer for the front end, strict reader
    shapes.py       random numbers of mean 1 and a given variance
    workload.py     who asks when, for what: endless, by seed
    service.py      how long a batch computes
    sources.py      open and closed loops
    parts.py        a request that is cut
    engine.py       the event loop: drives Scheduler as the front end does
    tally.py        what is counted while it runs
    intervals.py    means with confidence intervals, Student's t, control variates
    results.py      the figures of several replications
    replay.py       a trace as workload and service times
    run.py          a scenario, all settings and replications
    scaling.py      Amdahl's, Gustafson's and the universal scalability law, fitted
    theory.py       what queueing theory says, to compare with
    frame.py        what the pictures have in common
    plots.py        the pictures, as SVG
    plots_sweep.py  those of a swept load

Everything is drawn from seeds, one stream per purpose, so settings that are compared meet the very same requests
(common random numbers).
"""
