"""The parts that a campaign is made of, and how a lab's settings choose them. What the loop does with them does not
belong here."""
