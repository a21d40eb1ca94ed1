"""Dry run: compiles programs for TPUs that do not exist here, and reports.

Memory, collectives and a roofline estimate come from the compiled program.
Nothing here runs a program or reads weights.
"""
