"""``python -m glip`` is the ``glip`` command."""

from glip.cli.main import main

if __name__ == "__main__":
    main()
