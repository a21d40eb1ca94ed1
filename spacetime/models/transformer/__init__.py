"""The diffusion transformer, its attention and its adapters."""
