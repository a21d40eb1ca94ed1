"""Provenance: signed manifests (C2PA) and an invisible watermark.

Knows files and frames; nothing of models, of jobs or of HTTP.
"""
