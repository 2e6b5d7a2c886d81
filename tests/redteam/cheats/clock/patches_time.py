"""Patches `time`, so that its own clocks go at a fifth of the speed.

Ends as invalid: it trained for
"""

import time

import honest


def slowed(clock, start):
    return lambda: start + (clock() - start) / 5


for name in ("perf_counter", "monotonic", "time", "process_time"):
    clock = getattr(time, name)
    setattr(time, name, slowed(clock, clock()))
honest.main(steps=10**9)
