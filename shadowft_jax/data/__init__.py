"""Files -> batches; never jax."""

import os

# transformers says at import that torch is not there; its tokenizers do not need it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
