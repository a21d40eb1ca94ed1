"""Dry run: compiles programs for TPUs that are not there and reports on them.

Memory, collectives and a roofline estimate, read from the compiled text.
"""
