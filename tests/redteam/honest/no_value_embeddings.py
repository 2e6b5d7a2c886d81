"""No value embeddings, and so no gates."""

import base

base.VALUE_EMBEDDING_EVERY = 0

build = base.build
if __name__ == "__main__":
    base.main()
