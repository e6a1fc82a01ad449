"""`python -m vlm_lora VERB ...`: the command line where the installed command is not on the path."""

import sys

from vlm_lora.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
