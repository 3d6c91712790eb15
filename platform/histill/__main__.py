"""`python -m histill` is the command `histill`."""

from histill.cli.main import main

raise SystemExit(main())
