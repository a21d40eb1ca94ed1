"""Video autoencoders: Wan's causal one, and the identity on pixels.

Pure functions of parameters and arrays, in one piece or chunk by chunk. Tiling
and sharding of a decoder live in pipeline/, weight files in checkpoint/.
"""
