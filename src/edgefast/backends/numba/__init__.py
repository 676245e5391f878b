"""The numba backend: the loops of the C++ kernels, compiled on first call. One module a capability.

Nothing is compiled, and numba is not even imported, before a kernel is called.
"""

from __future__ import annotations

from edgefast.backends.numba.aggregate import *  # noqa: F403
from edgefast.backends.numba.aggregate_robust import *  # noqa: F403
from edgefast.backends.numba.quantize import *  # noqa: F403
from edgefast.backends.numba.sketch import *  # noqa: F403
from edgefast.backends.numba.sketch_inputs import *  # noqa: F403
from edgefast.backends.numba.sketch_state import *  # noqa: F403

# One step a round, all of it whole-array arithmetic: nothing to win in a loop.
from edgefast.backends.numpy.server import *  # noqa: F403
