"""The activations of each block computed a second time in the backward pass."""

from torch.utils.checkpoint import checkpoint

import base

plain = base.Block.forward
base.Block.forward = lambda self, *given: checkpoint(plain, self, *given, use_reentrant=False)

build = base.build
if __name__ == "__main__":
    base.main()
