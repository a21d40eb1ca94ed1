"""Evaluation: measures the characters, motion and seams of videos.

Reads pixels only; nothing here depends on how a video was generated.
"""
