import os

# Read when torch is imported: without huge pages, fresh tensors cost the CPU one image in ten.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
