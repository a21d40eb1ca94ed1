"""Video service: an HTTP process, a worker process, a database between them.

The HTTP process imports no JAX; the worker process alone does. They share a
database and a folder of files, so that either may die and start again.
"""
