"""What the tails of an array are fed with: stored activations, or pictures through the trunk.

The same numbers either way. What is stored, where in the trunk, and why not, is decided here from
what `graft.plan` makes of sizes and times; it is said in one line, and kept in the runs' records.
"""

from graft.supply.batches import as_input, made_up
from graft.supply.forecast import Forecast, forecast
from graft.supply.origin import Origin
from graft.supply.supply import Supply, supply

__all__ = ["Forecast", "Origin", "Supply", "as_input", "forecast", "made_up", "supply"]
