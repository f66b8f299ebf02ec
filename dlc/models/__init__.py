"""Pure Flax models, one family in each file. A model is a frozen dataclass without arrays; its weights are a pytree."""
