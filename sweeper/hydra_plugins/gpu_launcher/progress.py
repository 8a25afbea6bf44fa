"""What a job tells the launcher while it runs. For any application:

    from hydra_plugins.gpu_launcher import progress

    progress.tell(HydraConfig.get().job.num, epoch / epochs, f"loss {loss:.3f}")

It is shown in the live view, and is a sign of life for `hydra.launcher.timeout_s`. Outside of the
launcher, and in processes that a job has started, it does nothing.
"""

# Defined elsewhere: Hydra executes this file again when it looks for plugins, and what is known
# here would be forgotten.
from hydra_plugins.gpu_launcher._progress import Teller, is_live, slot, tell, use

__all__ = ["Teller", "is_live", "slot", "tell", "use"]
