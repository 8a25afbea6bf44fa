"""What an application may tell the launcher before any job runs: `hydra.launcher.prepare`."""

# Defined elsewhere: Hydra executes this file again when it looks for plugins, and there would be
# two classes of a name.
from hydra_plugins.gpu_launcher._plan import Plan, planning, slot_names

__all__ = ["Plan", "planning", "slot_names"]
