"""Where sweeps stand: the command `graft-sweep`. Reads files; imports nothing large."""
