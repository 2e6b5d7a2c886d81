"""The squared ReLU with a backward pass of its own, which keeps one tensor less."""

import torch

import base


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


def forward(self, x):
    return self.project(SquaredReLU.apply(self.expand(x)))


base.MLP.forward = forward

build = base.build
if __name__ == "__main__":
    base.main()
