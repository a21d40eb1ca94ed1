"""A trained model in use: prompts and conditioning in, videos out.

Every mode is one model and one sampler. Knows nothing of training.
"""
