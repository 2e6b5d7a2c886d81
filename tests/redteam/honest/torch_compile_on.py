"""The training step compiled, before the clock runs; graded uncompiled, since those batches have another shape."""

import base
import torch

plain = base.GPT.forward
compiled = torch.compile(plain, dynamic=False)


def forward(self, idx, targets=None):
    return plain(self, idx) if targets is None else compiled(self, idx, targets)


base.GPT.forward = forward
base.main()
