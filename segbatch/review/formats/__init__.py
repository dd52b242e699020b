"""Formats in which the images of a run are exported: each a function of one image, and what stands
beside all of them.
"""
