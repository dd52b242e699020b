"""Networks, their weights, and prediction with them."""

import os

# Torch reads this at its first tensor. In pages of 4 KB, each new tensor costs page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
