"""How language models reply instead of in the form they were asked for, a line each, all of them the same change."""

from __future__ import annotations

import html
import json

SOURCE = """\
import torch

LR = 0.04  # of matrices
DEPTH = 4


def step(x):
    y = x * LR
    return y


print(step(DEPTH))
"""
CHANGED = SOURCE.replace("0.04", "0.02")
SAID = "idea: lower it\nwhy: noise\nexpects: less\n\n"
OLD, NEW = "LR = 0.04  # of matrices", "LR = 0.02  # of matrices"
BLOCK = f"<<<<<<< SEARCH train.py\n{OLD}\n=======\n{NEW}\n>>>>>>> REPLACE\n"
BARE = BLOCK.replace(" train.py", "")
OTHER = "idea: another\n<<<<<<< SEARCH train.py\nDEPTH = 4\n=======\nDEPTH = 9\n>>>>>>> REPLACE\n"
HUNK = f" import torch\n \n-{OLD}\n+{NEW}\n DEPTH = 4\n"
DIFF = f"--- a/train.py\n+++ b/train.py\n@@ -1,4 +1,4 @@\n{HUNK}"
AS_JSON = {"idea": "lower it", "why": "noise", "expects": "less", "edits": [{"search": OLD, "replace": NEW}]}

HABITS = {
    "as asked": SAID + BLOCK,
    "a fence with a path around a block": f"{SAID}```python train.py\n{BARE}```\n",
    "a fence with a path after a colon": f"{SAID}```python:train.py\n{BARE}```\n",
    "a fence with a path, a blank line, a named block": f"{SAID}```python train.py\n\n{BLOCK}```\n",
    "a fullwidth colon": SAID.replace(":", "\uff1a") + BLOCK,
    "channels": f"<|channel|>analysis<|message|>{OTHER}<|end|><|start|>a<|channel|>final<|message|>{SAID}{BLOCK}",
    "the last channel alone": f"<|channel|>final<|message|>{SAID}{BLOCK}<|return|>",
    "tokens at both ends": f"<|im_start|>\n{SAID}{BLOCK}<|im_end|>\n<|endoftext|>",
    "[THINK]": f"[THINK]{OTHER}[/THINK]{SAID}{BLOCK}",
    "<reasoning>": f"<reasoning>\n{OTHER}</reasoning>\n{SAID}{BLOCK}",
    "<thought>": f"<thought>{OTHER}</thought>\n{SAID}{BLOCK}",
    "<think> without its beginning": f"{OTHER}</think>\n{SAID}{BLOCK}",
    "a second thought that never ends": f"{SAID}{BLOCK}\n<think>\n{OTHER}",
    "a unified diff": SAID + DIFF,
    "a unified diff in a fence": f"{SAID}```diff\n{DIFF}```\nThat is all.",
    "git's diff": f"{SAID}```diff\ndiff --git a/train.py b/train.py\nindex 1234567..89abcde 100644\n{DIFF}```",
    "a diff without a header": f"{SAID}```diff\n@@ -1,4 +1,4 @@\n{HUNK}```",
    "a diff of two lines": f"{SAID}```diff\n-{OLD}\n+{NEW}\n```",
    "a diff whose context is not indented": f"{SAID}```diff\n@@\n-{OLD}\n+{NEW}\nDEPTH = 4\n```",
    "Begin Patch": f"{SAID}*** Begin Patch\n*** Update File: train.py\n@@\n{HUNK}*** End Patch\n",
    "Begin Patch in a fence": f"{SAID}```\n*** Begin Patch\n*** Update File: train.py\n{HUNK}*** End Patch\n```",
    "dashes and pluses": f"{SAID}------- SEARCH\n{OLD}\n=======\n{NEW}\n+++++++ REPLACE\n",
    "headings": f"## Idea\nlower it\n\n## Why\nnoise\n\n## Expects\nless\n\n{BLOCK}",
    "bold headings": f"**Idea**\nlower it\n\n**Why**\nnoise\n\n**Expects**\nless\n\n{BLOCK}",
    "escaped for HTML": html.escape(SAID + BLOCK),
    "the same answer twice": f"{SAID}{BLOCK}\n{SAID}{BLOCK}",
    "no-break spaces": (SAID + BLOCK).replace("LR = 0.0", "LR\u00a0=\u00a00.0").replace("SEARCH ", "SEARCH\u00a0"),
    "a whole file without a path": f"{SAID}```python\n{CHANGED}```\n",
    "a whole file named in its first line": f"{SAID}```python\n# train.py\n{CHANGED}```\n",
    "JSON": json.dumps(AS_JSON),
    "JSON after a sentence": f"Here is the change:\n{json.dumps(AS_JSON)}\nGood luck!",
    "a search text without the line's comment": SAID + BLOCK.replace(OLD, "LR = 0.04"),
}
