"""Orthogonal matrices, and projections that do not start at 0."""

import torch

import base


def init_weights(self):
    for name, weight in self.named_parameters():
        if weight.ndim == 2 and name.startswith("blocks."):
            torch.nn.init.orthogonal_(weight, gain=0.5)
        else:
            torch.nn.init.normal_(weight, mean=0.5 if weight.ndim == 1 else 0.0, std=0.02)


base.GPT.init_weights = init_weights

build = base.build
if __name__ == "__main__":
    base.main()
