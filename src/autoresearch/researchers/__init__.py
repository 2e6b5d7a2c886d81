"""Who proposes changes. `interface.py` says what a researcher is; each is imported only when chosen."""
