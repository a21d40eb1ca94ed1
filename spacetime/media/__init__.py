"""Media files: video readers and writers, codecs, images, contact sheets.

Arrays in, files out, and back; knows nothing of models.
"""
