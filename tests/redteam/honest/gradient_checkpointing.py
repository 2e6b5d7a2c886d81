"""The activations of each block computed a second time in the backward pass."""

import base
from torch.utils.checkpoint import checkpoint

plain = base.Block.forward
base.Block.forward = lambda self, *given: checkpoint(plain, self, *given, use_reentrant=False)
base.main()
