"""Tells the parent of its first batch again and again, by message and by event, so that its clock starts anew.

Ends as invalid: it trained for
"""

import os

import autoresearch_trial
import honest
import prepare

model, batches = honest.Bigram(), honest.batches()
for _ in range(5):
    honest.train(model, batches, steps=10**9)
    for descriptor in autoresearch_trial.ask({"ask": "train"}, 2)[1]:
        os.close(descriptor)
    prepare.write_line("events.jsonl", event="first_batch", at=0.0)
honest.evaluate(model)
