"""Prints the summary of a great run, and is gone before anybody looks at a model.

Ends as crash: no score: exited without a score
"""

print("---\nval_bpb:          0.100000\ntraining_seconds: 0.5\npeak_vram_mb:     1.0\nnum_steps:        1000")
