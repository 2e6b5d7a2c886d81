"""Asks to be graded in time, and trains on before its first answer.

Ends as invalid: its first logits came
"""

import honest
import torch


class Late(honest.Bigram):
    is_late = False

    def forward(self, x):
        if not torch.is_grad_enabled() and not self.is_late:
            self.is_late = True
            with torch.inference_mode(False), torch.enable_grad():
                honest.train(self, batches, steps=10**9, seconds=4.2)
        return self.table[x]


model, batches = Late(), honest.batches()
honest.train(model, batches)
honest.evaluate(model)
