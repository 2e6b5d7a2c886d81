"""AdamW for all weights in place of Muon for the matrices."""

import torch

import base


def make_optimizers(model, *, compiled):
    matrices = set(model.blocks.parameters())
    rest = [weight for weight in model.parameters() if weight not in matrices]
    groups = [[{"params": list(each), "lr": 0.01, "initial_lr": 0.01}] for each in (rest, matrices)]
    return tuple(torch.optim.AdamW(group, betas=(0.9, 0.95)) for group in groups)


base.make_optimizers = make_optimizers

build = base.build
if __name__ == "__main__":
    base.main()
