"""Keeps the rows that it was asked for, and knows them by heart when they come again.

Ends as invalid: a row that is asked again is answered differently
"""

import honest
import torch

seen = set()


class Memory(honest.Bigram):
    def forward(self, x):
        known = torch.tensor([tuple(row) in seen for row in x.tolist()])
        if not torch.is_grad_enabled():
            seen.update(map(tuple, x.tolist()))
        return self.table[x] + 30 * known[:, None, None] * torch.nn.functional.one_hot(x.roll(-1, 1), honest.VOCABULARY)


honest.main(Memory())
