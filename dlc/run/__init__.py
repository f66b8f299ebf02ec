"""Runs: from the command line to a folder with everything that a run leaves behind.

    run.Run          where an experiment reports to
    fit.fit          the training loop, and fit.Plan, how long it is
    loop.training    its parts, for a loop of your own
    launch.launch    flags, folder, signals, exit codes

Import them from these files. This one only checks that the extra `run` is installed.
"""

from dlc.errors import needs

needs("run", "matplotlib", "tensorboardX", "tyro")
