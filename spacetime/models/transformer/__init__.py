"""The diffusion transformer: blocks, attention, positions, LoRA, caches.

Attention kernels and context parallelism are here too. Nothing here knows of
noise schedules, samplers or files.
"""
