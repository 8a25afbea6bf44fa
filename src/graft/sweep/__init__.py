"""A sweep: checked as a whole, handed out array by array, put together at the end.

asked.py    a run that was asked for
check.py    what can be known to be wrong before training
driver.py   the process that holds the sweep: writes down, follows, finishes
follow.py   its thread that sends MLflow what is new and has figures drawn
work.py     what a worker does with one array: train, and leave files
dry.py      what a sweep would do; it and work.py need PyTorch, the others do without
"""

from graft.sweep.asked import Asked, Value, folder_of
from graft.sweep.driver import Driver, Prepared, prepare

__all__ = ["Asked", "Driver", "Prepared", "Value", "folder_of", "prepare"]
