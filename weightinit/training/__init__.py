"""Training: weight templates, scalers for a new size, and the loop that trains any model.

Importing it costs torch; what needs timm, accelerate or scikit-learn imports them on use.
"""

from weightinit.training.constrain import ConstrainedModel, constrain
from weightinit.training.fit import fit_scalers

__all__ = ["ConstrainedModel", "constrain", "fit_scalers"]
