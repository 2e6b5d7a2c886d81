"""What the cheats have in common: a table of which token follows which, learnt by gradient descent. Frozen in the lab.

It takes a fixed number of steps, and few: two honest runs score the same to the last bit, and more training pays.
"""

import time

import torch
from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, evaluate_bpb, log_metrics, make_dataloader

ROWS, STEPS, RATE = 8, 40, 30.0
torch.set_num_threads(1)
torch.manual_seed(1)
tokenizer = Tokenizer.from_directory()
VOCABULARY = tokenizer.get_vocab_size()


class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(VOCABULARY, VOCABULARY))

    def forward(self, x):
        return self.table[x]


def batches():
    return make_dataloader(tokenizer, ROWS, MAX_SEQ_LEN, "train", "cpu")


def learn(model, x, y):
    loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    with torch.no_grad():
        model.table -= RATE * model.table.grad
        model.table.grad = None
    return loss.item()


def train(model, batches, steps=STEPS, seconds=TIME_BUDGET):
    start, step = time.perf_counter(), 0
    while step < steps and (spent := time.perf_counter() - start) < seconds:
        loss, step = learn(model, *next(batches)[:2]), step + 1
        log_metrics(step=step, progress=spent / seconds, loss=loss, lr=RATE, tokens_per_second=1.0)


def evaluate(model):
    print(f"---\nval_bpb: {evaluate_bpb(model, tokenizer, ROWS)}", flush=True)


def main(model=None, **how):
    model = model or Bigram()
    train(model, batches(), **how)
    evaluate(model)
