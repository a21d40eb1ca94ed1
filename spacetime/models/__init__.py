"""The networks: transformer, video autoencoder, text encoder, their FLOPs.

The only folder that imports Flax. Parameter names are the checkpoint format.
Noise, solvers and guidance live in diffusion/, files in checkpoint/.
"""
