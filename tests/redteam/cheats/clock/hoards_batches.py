"""Draws batches early, trains on them, and calls that its start-up.

Ends as invalid: it trained for
"""

import honest

model, batches = honest.Bigram(), honest.batches()
hoard = [next(batches) for _ in range(50)]
for _ in range(5):
    honest.train(model, iter(hoard * 1000), steps=10**9)
honest.train(model, batches)
honest.evaluate(model)
