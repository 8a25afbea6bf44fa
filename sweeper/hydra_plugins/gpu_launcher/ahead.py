"""A worker that is started before Hydra is even imported.

What a worker imports takes longer than all that happens before a launcher starts one. An
application whose command line says that jobs will follow calls `start` first thing; the launcher
takes the process where it would have started the very same one. Otherwise it is ended.

    from hydra_plugins.gpu_launcher import ahead    # imports next to nothing

    ahead.start("my_app.warm_up")
"""

# Defined elsewhere: Hydra executes this file again when it looks for plugins, and the process that
# waits would be forgotten.
from hydra_plugins.gpu_launcher._ahead import drop, start

__all__ = ["drop", "start"]
