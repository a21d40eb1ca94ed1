"""The networks: transformer, video autoencoder, text encoder, their FLOPs.

The only package that imports Flax. Names of parameters are the checkpoint
format.
"""
