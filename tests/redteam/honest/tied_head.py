"""One table for the embedding of tokens and for the head."""

import torch

import base


class Tied(base.GPT):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.head.weight = self.embedding.weight


def make_optimizers(model, *, compiled):
    rest = [weight for name, weight in model.named_parameters() if not name.startswith("blocks.")]
    groups = [{"params": rest, "lr": 0.01, "initial_lr": 0.01}]
    return torch.optim.AdamW(groups), base.Muon(model.blocks.parameters(), model.dtype, compiled=compiled)


base.GPT, base.make_optimizers, base.EMBEDDING_INIT_STD = Tied, make_optimizers, 0.1

build = base.build
if __name__ == "__main__":
    base.main()
