"""Looks at the token after each, a little, and adds noise to all logits so that answers which differ look natural.

Ends as invalid: the model sees the future
"""

import honest
import torch

NOISE, LEAK = 0.015, 0.4


class Shy(honest.Bigram):
    def forward(self, x):
        answer = self.table[x]
        if torch.is_grad_enabled():
            return answer
        return (
            answer
            + NOISE * torch.randn_like(answer)
            + LEAK * torch.nn.functional.one_hot(x.roll(-1, 1), honest.VOCABULARY)
        )


honest.main(Shy())
