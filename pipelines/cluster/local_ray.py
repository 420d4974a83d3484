"""Whether a run has a Ray of its own."""

import os
import sys


def starts_local_ray() -> bool:
    """Whether ``ray_session`` would start a Ray here: this process uses none yet, and ``RAY_ADDRESS`` names none.

    An empty ``RAY_ADDRESS`` names none. Ray itself is not imported for the answer, which takes seconds.
    """
    ray = sys.modules.get("ray")
    return not (ray and ray.is_initialized()) and os.environ.get("RAY_ADDRESS", "") in ("", "local")
