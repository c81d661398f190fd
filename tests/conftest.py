"""How all tests run."""

from hypothesis import settings

# The same examples every time, and no limit of time for one: a busy machine is not a defect.
settings.register_profile("pmuvisor", deadline=None, derandomize=True)
settings.load_profile("pmuvisor")
