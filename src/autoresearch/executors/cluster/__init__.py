"""Runs on the machines of a Ray cluster: each slot is a trusted process there, which runs and grades as one does here.

What crosses the network is JSON, in parts that are small enough to need no object store.
"""
