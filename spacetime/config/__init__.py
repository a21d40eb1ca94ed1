"""The config: an ml_collections ConfigDict becomes one frozen Experiment.

The only package that reads a ConfigDict; everything below takes dataclasses.
"""
