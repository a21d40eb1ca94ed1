"""Routes of the HTTP application, a file for each subject.

A route reads its request, calls the service and shows the answer.
"""
