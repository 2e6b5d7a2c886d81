"""What confines a run: bubblewrap, Landlock or nothing; and the limits on what it uses."""
