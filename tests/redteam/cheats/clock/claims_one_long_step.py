"""Reports a single step for all its training, so that a step's length would excuse what it trains beyond the budget.

Ends as invalid: it trained for
"""

import honest
from prepare import log_metrics

model, batches = honest.Bigram(), honest.batches()
start = honest.time.perf_counter()
while honest.time.perf_counter() - start < honest.TIME_BUDGET + 1.0:
    loss = honest.learn(model, *next(batches)[:2])
log_metrics(step=1, progress=1.0, loss=loss, lr=honest.RATE, tokens_per_second=1.0)
honest.evaluate(model)
