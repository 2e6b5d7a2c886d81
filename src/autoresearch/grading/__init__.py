"""What a run is worth, seen from outside: its clock, its probes and the score from its logits.

Whether a trial is kept is not decided here: see judging/.
"""
