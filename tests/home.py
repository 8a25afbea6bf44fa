"""A folder in which a user types commands: what tests of the command as a whole have in common."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# A sweep of seconds: a small network without weights, on the pictures of the fixture.
TINY = (
    "model=mobilenet_v3_small", "model.weights=none", "image_size=32", "device=cpu",
    "dataset=csv", "dataset.target=Male", "tracking=off",
)  # fmt: skip

Done = subprocess.CompletedProcess[str]


class Home:
    """A folder with a trunk cache of its own.

    Args:
        pictures: of the fixture `tiny_pictures`.
        always: what every command has.
    """

    def __init__(self, path: Path, pictures: Path, *always: str) -> None:
        self.path, self.outputs = path, path / "outputs"
        data = (f"dataset.csv={pictures / 'labels.csv'}", f"dataset.images={pictures}")
        self._always = (*TINY, *data, *always)
        self._environment = {**os.environ, "GRAFT_CACHE": str(path / "cache")}

    def start(
        self, *arguments: str, program: Sequence[str] = ("-m", "graft", "-m")
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *program, *self._always, *arguments], cwd=self.path,
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, program: Sequence[str] = ("-m", "graft", "-m")) -> Done:
        """To its end, whatever that is."""
        process = self.start(*arguments, program=program)
        out, error = process.communicate(timeout=300)
        return Done(process.args, process.returncode, out, error)

    def graft(self, *arguments: str, code: int = 0) -> Done:
        """To its end, which is as expected."""
        done = self.run(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done
