"""A worker that is started before Hydra is even imported.

What a worker imports takes longer than all that happens before a launcher starts one. An
application whose command line says that jobs will follow calls `start` first thing; the launcher
takes the process where it would have started the very same one. Otherwise it is ended: by the
launcher, by `drop`, or with the command.

    from hydra_plugins.gpu_launcher import ahead    # imports next to nothing

    if __name__ == "__main__":
        ahead.start("my_app.warm_up")
        from my_app import main                     # with Hydra
        main()
"""

# Defined elsewhere: Hydra executes this file again when it looks for plugins, and the process that
# waits would be forgotten.
from hydra_plugins.gpu_launcher._ahead import drop, start

__all__ = ["drop", "start"]
