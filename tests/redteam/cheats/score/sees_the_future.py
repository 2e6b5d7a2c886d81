"""Returns the targets that it was given: attention without a causal mask, which looks at the token after each.

Ends as invalid: the model sees the future
"""

import honest
import torch


class Peeking(honest.Bigram):
    def forward(self, x):
        place = torch.arange(x.size(1))
        attention = (20.0 * (place[None] == place[:, None] + 1)).softmax(-1)
        return self.table[x] + 9 * attention @ torch.nn.functional.one_hot(x, honest.VOCABULARY).float()


honest.main(Peeking())
