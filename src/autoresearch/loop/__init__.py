"""How a campaign runs: the loop, one trial, one run, and how a researcher is asked. Only here do the stages meet.

How a trial is scored or decided is not here: see grading/ and judging/.
"""
