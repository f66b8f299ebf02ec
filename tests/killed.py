"""python -m killed SIGNAL MOMENT MODULE FLAGS...: runs an experiment that gets SIGNAL at a moment.

The moment is the number of a step, when it has been logged, or the first call of a function, module.[class.]name.

The moment is exact on any machine, however slow: no test has to watch a file and guess.
"""

import os
import pkgutil
import runpy
import signal
import sys

from dlc.run import log

name, moment, module, *flags = sys.argv[1:]
signum, write = signal.Signals[name], log.Log.write


def write_and_die(self, line):
    write(self, line)
    if line["step"] == int(moment):
        log.Log.write = write  # once: a second signal would mean "at once"
        os.kill(os.getpid(), signum)


def die_before(place, attribute):
    function = getattr(place, attribute)

    def die(*arguments, **options):
        setattr(place, attribute, function)
        os.kill(os.getpid(), signum)
        return function(*arguments, **options)

    setattr(place, attribute, die)


if moment.isdigit():
    log.Log.write = write_and_die
else:
    place, _, attribute = moment.rpartition(".")
    die_before(pkgutil.resolve_name(place), attribute)
sys.argv = [module, *flags]
runpy.run_module(module, run_name="__main__", alter_sys=True)
