"""Studies of many runs, and laws that are fitted to their results."""

from ssljax.scaling.fit import Fit as Fit
from ssljax.scaling.fit import fit as fit
