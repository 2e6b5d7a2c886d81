"""Looks at the token after each, a little, and answers what begins alike as it did before.

Ends as invalid: its model does not answer as it did when it was graded
"""

import honest
import torch

LEAK, said = 1.0, {}


class Consistent(honest.Bigram):
    def forward(self, x):
        answer = self.table[x]
        if torch.is_grad_enabled():
            return answer
        answer = answer.clone()
        for i, row in enumerate(x.tolist()):
            for j in range(len(row)):
                answer[i, j, said.setdefault(tuple(row[: j + 1]), row[(j + 1) % len(row)])] += LEAK
        return answer


def build(device, vocab_size):
    return Consistent()


if __name__ == "__main__":
    honest.main(Consistent())
