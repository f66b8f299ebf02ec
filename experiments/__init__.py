"""Claims of the course and of its papers, each measured by one file. Experiments never import each other."""

from dlc import process

# Before JAX is imported: malloc, the compilation cache and XLA's flags cannot be set later.
process.prepare()
