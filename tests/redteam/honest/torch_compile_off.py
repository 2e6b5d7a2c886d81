"""Nothing compiled, whatever the device."""

import base

plain = base.make_optimizers
base.GPT.compile = lambda self, **how: None
base.make_optimizers = lambda model, *, compiled: plain(model, compiled=False)

build = base.build
if __name__ == "__main__":
    base.main()
