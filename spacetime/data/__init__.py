"""Training data: sources, batches, packing, tokenizer, latent caches.

NumPy and grain only: nothing here imports JAX.
"""
