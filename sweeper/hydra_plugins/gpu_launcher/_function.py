"""A function of the application, by its dotted path: all that the launcher knows of it."""

from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException

from hydra_plugins.gpu_launcher._job import in_words


def function(key: str, path: str) -> Callable[..., Any]:
    """The function that the option `hydra.launcher.<key>` names.

    Looked up by `instantiate`, because that refuses targets which would let a configuration run
    what it likes (`os.system`, `builtins.exec`); `hydra.utils.get_method` does not.

    Raises:
        HydraException: there is no such function, or it may not be called.
    """
    from hydra.utils import instantiate

    try:
        found: Callable[..., Any] = instantiate({"_target_": path, "_partial_": True}).func
    except Exception as error:
        raise HydraException(
            f"hydra.launcher.{key}={path} cannot be used: {in_words(error.__cause__ or error)}\n"
            "Give the dotted path of a function, as in my_package.my_module.my_function."
        ) from error
    return found
