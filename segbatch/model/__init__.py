import os

# Read by torch at its first tensor: in pages of 4 KB, fresh tensors cost the CPU a fault for each.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
