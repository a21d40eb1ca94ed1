"""Weights of others: tables of names and layouts, read and written.

Diffusers folders, Wan, UMT5, LoRA dialects, tokenizers; no PyTorch.
"""
