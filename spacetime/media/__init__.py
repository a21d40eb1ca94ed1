"""Media files: video readers and writers, codecs, images, contact sheets.

Arrays in, files out, and back. The ground floor of the file system: atomic
writes live here too. Imports no other room, and no model.
"""
