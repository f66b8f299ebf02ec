"""python -m killed SIGNAL STEP MODULE FLAGS...: runs an experiment that gets SIGNAL when it has logged STEP.

The moment is exact on any machine, however slow: no test has to watch a file and guess.
"""

import os
import runpy
import signal
import sys

from dlc.run import log

name, step, module, *flags = sys.argv[1:]
signum, at, write = signal.Signals[name], int(step), log.Log.write


def write_and_die(self, line):
    write(self, line)
    if line["step"] == at:
        log.Log.write = write  # once: a second signal would mean "at once"
        os.kill(os.getpid(), signum)


log.Log.write = write_and_die
sys.argv = [module, *flags]
runpy.run_module(module, run_name="__main__", alter_sys=True)
