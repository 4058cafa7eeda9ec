"""The bricks: they see tensors and numbers, never a config or an architecture's name."""
