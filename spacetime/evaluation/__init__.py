"""Measures what is in a video: characters, colours, digits, motion, seams.

Reads pixels only; nothing here depends on how a video was generated.
"""
