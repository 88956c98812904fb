"""The command line as a person runs it, in an empty folder."""

from collections.abc import Callable

import pytest

from glip.cli.main import main


@pytest.fixture
def command_line(capsys, tmp_path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run a verb of ``glip`` in an empty folder without a data root: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_DATA", raising=False)

    def run(verb: str, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([verb, *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run
