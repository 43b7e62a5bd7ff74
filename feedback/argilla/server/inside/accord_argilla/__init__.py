"""What accord adds to a stock argilla-server: a search engine, jobs, security headers and a start-up.

This package runs inside argilla-server's own environment and nowhere else. It imports nothing of accord and
nothing that only the training environment has; `feedback.argilla.server.process` puts the folder above it on the
server's PYTHONPATH and starts `python -m accord_argilla`.
"""
