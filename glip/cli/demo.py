"""``glip demo``: a page to try a model in a browser; ``serve.py`` runs it."""

from glip.cli.serve import run as run
