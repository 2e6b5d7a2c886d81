"""Takes a third of a second for every answer of its exam, evenly, as if it computed something there.

Ends as invalid: it took .* s to answer its exam
"""

import time

import honest
import torch


class Slow(honest.Bigram):
    def forward(self, x):
        if torch.is_inference_mode_enabled():
            time.sleep(0.33)
        return self.table[x]


honest.main(Slow())
