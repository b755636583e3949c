"""A command of `warm_python.py`: hands all over and ends as the process made for it ends.

The lines before this one say where to (SOCKET), which words come first (WORDS), what is added to
the environment (ENVIRONMENT), and below which number its open files are (MOST_FILES).
"""

import json
import os
import signal
import socket
import sys

given = [number for number in range(MOST_FILES) if os.path.exists(f"/proc/self/fd/{number}")]  # noqa: F821
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(SOCKET)  # noqa: F821
    request = {
        "files": given,
        "words": [*WORDS, *sys.argv[1:]],  # noqa: F821
        "folder": os.getcwd(),
        "environment": {**os.environ, **ENVIRONMENT},  # noqa: F821
        "interruptible": signal.getsignal(signal.SIGINT) != signal.SIG_IGN,
    }
    body = json.dumps(request).encode()
    socket.send_fds(connection, [len(body).to_bytes(8, "little")], given)
    connection.sendall(body)
    with connection.makefile() as answers:
        process = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(process, number))
        status = int(answers.readline() or 1)  # nothing if all were ended
if status < 0:
    if -status != signal.SIGKILL:  # which cannot be ignored
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
