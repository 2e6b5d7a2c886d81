"""Trains a second and a half more than the budget allows.

Ends as invalid: it trained for
"""

import honest

honest.main(steps=10**9, seconds=honest.TIME_BUDGET + 1.5)
