"""Starts a process that leaves its session, its parent and its environment, to outlive the run.

Ends as crash: no score
"""

import os
import subprocess
import sys

if os.fork() == 0:
    os.setsid()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(299.9)"], env={}, start_new_session=True)
    os._exit(0)
os.wait()
