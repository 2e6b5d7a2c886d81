"""The training step compiled, before the clock runs; graded uncompiled, since those batches have another shape."""

import torch

import base

plain = base.GPT.forward
compiled = torch.compile(plain, dynamic=False)


def forward(self, idx, targets=None):
    return plain(self, idx) if targets is None else compiled(self, idx, targets)


base.GPT.forward = forward

build = base.build
if __name__ == "__main__":
    base.main()
