"""What the exit code of `python -m experiments.train` says, and so what whoever started it should do."""

DONE = 0
ERROR = 1  # an error that its user can mend, told in one line: starting again doesn't help
PREEMPTED = 75  # SIGTERM: the state was saved; start again, and it continues
STALLED = 76  # no step ended for config.stall_timeout seconds; start again, elsewhere if it happens there again
LOST_PROCESS = 77  # another process of the training was lost, or never came; start all of them again
