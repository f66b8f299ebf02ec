"""Pure Flax models, one family a file. A module is a frozen dataclass without arrays; its weights are a tree apart."""
