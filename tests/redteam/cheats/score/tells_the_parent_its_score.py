"""Sends the parent a score, where the protocol has a question.

Ends as invalid: it broke the grading protocol: asked for 'score' out of turn
"""

import autoresearch_trial

autoresearch_trial.ask({"ask": "score", "val_bpb": 0.1, "nats": 1.0, "tokens": 1, "bytes": 1})
