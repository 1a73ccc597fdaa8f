"""What Python runs at the start of each process that a test starts (conftest.py puts this folder first on its path).

bitsandbytes is an extra of trueup. Where it is installed PEFT imports it, and with it torch's compiler: a fifth of the CPU time
that such a process needs to start. No process that a test starts quantizes, so these have none.
"""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's own way to say that there is no such module
