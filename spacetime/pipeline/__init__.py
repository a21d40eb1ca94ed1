"""Inference with a trained model: from prompts and conditioning to videos.

One model and one sampler serve every mode. Imports nothing of training.
"""
