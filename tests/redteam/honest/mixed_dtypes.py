"""Blocks in bfloat16, norms in float32, logits in float16."""

import torch

import base

norm, forward = base.norm, base.GPT.forward


def graded(self, idx, targets=None):
    return forward(self, idx).half() if targets is None else forward(self, idx, targets)


base.pick_dtype = lambda device: torch.bfloat16
base.norm = lambda x, dtype=None: norm(x.float()).to(dtype or x.dtype)
base.GPT.forward = graded

build = base.build
if __name__ == "__main__":
    base.main()
