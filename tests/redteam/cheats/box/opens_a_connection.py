"""Reaches for the network: this machine's own, and the world's, by TCP, by UDP and by a name.

Ends as crash: no connection
"""

import os
import socket
import sys

port = int(os.environ["REDTEAM_PORT"])
reached = []
for address in (("127.0.0.1", port), ("::1", port), ("1.1.1.1", 53), ("example.org", 80)):
    try:
        socket.create_connection(address, 1)
        reached.append(address)
    except OSError as error:
        print(address, error)
try:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"weights", ("127.0.0.1", port))  # whether it comes, the test sees
except OSError as error:
    print(error)
sys.exit(f"it reached {reached}" if reached else "no connection")
