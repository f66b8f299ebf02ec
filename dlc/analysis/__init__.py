"""Looking inside networks: pure functions of apply(variables, pixels)."""
