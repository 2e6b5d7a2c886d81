"""Returns NaN, which is neither larger nor smaller than any best score so far.

Ends as invalid: its logits are not finite
"""

import honest


class Nothing(honest.Bigram):
    def forward(self, x):
        return self.table[x] * float("nan")


honest.train(honest.Bigram(), honest.batches())
honest.evaluate(Nothing())
