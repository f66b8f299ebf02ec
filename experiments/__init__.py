"""Claims of the course and of its papers, each measured by one file. They never import each other."""

from dlc import process

# Before JAX is imported: afterwards it would be too late for both malloc and the compilation cache.
process.prepare()
