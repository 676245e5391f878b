"""The numpy backend: always there, the reference the others are compared with. One module a capability."""

from __future__ import annotations

from edgefast.backends.numpy.aggregate import *  # noqa: F403
from edgefast.backends.numpy.aggregate_robust import *  # noqa: F403
from edgefast.backends.numpy.quantize import *  # noqa: F403
from edgefast.backends.numpy.server import *  # noqa: F403
from edgefast.backends.numpy.sketch import *  # noqa: F403
from edgefast.backends.numpy.sketch_inputs import *  # noqa: F403
from edgefast.backends.numpy.sketch_state import *  # noqa: F403
