"""When a test gives up on a process: no test depends on how fast the machine is, so what takes this
long has stopped for good."""

HANG_S = 1800.0
