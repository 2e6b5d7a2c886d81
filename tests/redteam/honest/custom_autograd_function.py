"""The squared ReLU with a backward pass of its own, which keeps one tensor less."""

import base
import torch


class SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx, grad):
        (positive,) = ctx.saved_tensors
        return 2 * positive * grad


def forward(self, x, embedded, cos, sin):
    x = x + self.attention(base.norm(x), embedded, cos, sin)
    return x + self.project(SquaredReLU.apply(self.expand(base.norm(x))))


base.Block.forward = forward
base.main()
