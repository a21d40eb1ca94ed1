"""Video autoencoders: the causal one of Wan, and the identity on pixels."""
