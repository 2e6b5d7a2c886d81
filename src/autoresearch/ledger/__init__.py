"""What happened: the records and events, the append-only file, and the campaigns and reports gathered from it."""
