"""The digits world: scenes of moving digits, their captions and their pixels.

A data set with known answers, rendered here, on which models are measured.
"""
