"""WHO: the only room that loads transformers and peft models."""

import logging

# PEFT imports bitsandbytes wherever that is installed, and it warns there of kernels that nobody has asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
