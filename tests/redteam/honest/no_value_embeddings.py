"""No value embeddings, and so no gates."""

import base

base.VALUE_EMBEDDING_EVERY = 0
base.main()
