"""Online prediction: a model behind HTTP, on Ray Serve.

Needs the extra ``serve``; :func:`segbatch.serving.service.require_serve` says so.
"""
