"""Rectified flow: schedules, solvers, guidance, conditioning, the sampler.

JAX without Flax: the denoiser is a function. No files, no flags.
"""
