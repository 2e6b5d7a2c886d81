"""Uses the socket that it inherits for more than it is for: asks for the sealed split before it is graded.

Ends as invalid: asked for 'holdout' out of turn
"""

import autoresearch_trial

answer, descriptors = autoresearch_trial.ask({"ask": "holdout"}, 8)
print("it has", answer, descriptors)
