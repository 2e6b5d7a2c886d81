"""Replaces the metric by a function that likes every model.

Ends as crash: no score: exited without a score
"""

import honest
import prepare

honest.evaluate_bpb = prepare.evaluate_bpb = lambda model, tokenizer, batch_size: 0.1
honest.main()
