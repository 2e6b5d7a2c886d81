"""What the literature says about a query: arXiv and your own notes, fenced as data. Problems become text."""
