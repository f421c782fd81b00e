import sys

from glmft.cli import main

sys.exit(main())
