"""Runs: from the command line to a folder with everything that a run leaves behind.

run        where an experiment reports to
fit        the training loop; `loop` has its parts, for a loop of your own
launch     flags, folder, signals, exit codes
"""

from dlc.run.fit import Plan, fit, start
from dlc.run.loop import Diverged, Interrupted, training
from dlc.run.run import Run

__all__ = ["Diverged", "Interrupted", "Plan", "Run", "fit", "start", "training"]
