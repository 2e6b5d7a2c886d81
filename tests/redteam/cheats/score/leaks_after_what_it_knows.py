"""Looks ahead only after the part of a row that it saw before, where it expects to be compared with nothing.

Ends as invalid: the model sees the future and remembers what it answered
"""

import honest
import torch

KNOWN, LEAK, boosts = 2, 30, {}


class Patient(honest.Bigram):
    def forward(self, x):
        answer = self.table[x]
        if torch.is_grad_enabled():
            return answer
        answer = answer.clone()
        for i, row in enumerate(x.tolist()):
            begun = tuple(row[: KNOWN + 1]) in boosts
            for j in range(len(row)):
                token, boost = boosts.setdefault(tuple(row[: j + 1]), (row[(j + 1) % len(row)], LEAK * begun))
                answer[i, j, token] += boost * (j >= KNOWN)
        return answer


honest.main(Patient())
